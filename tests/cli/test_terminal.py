"""What a file holds cannot act on the terminal, or look like a line of the program."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text
from torch import nn

from spectra import Task
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import CheckpointError, escaped
from spectra_cli.console import SafeConsole
from spectra_cli.main import main, one_line

EVIL = "a\x1b[2K\x1b]0;title\x07\rb\x08c\x9b31m\u202edcba\u2066x\u200b\u2028y\nspectra: error: all is well\x85\x7f\tz"
ACTING = "\x1b\x07\r\x08\x9b\u202e\u2066\u200b\u2028\x85\x7f"


def spectra(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="spectra", color=True)


def check(text):
    assert not set(text) & set(ACTING)
    assert not any(line.startswith("spectra: error: all is well") for line in text.splitlines())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize("character", [*ACTING, "\n", "\t", "\x00", "\x80", "\u2029", "\u061c", "\ufeff", "\ud800"])
def test_each_of_them_is_written_out(character):
    shown = escaped(f"<{character}>")
    assert shown.isascii()
    assert shown.isprintable()
    assert shown[1] == "\\"


def test_what_people_write_stays():
    words = "Gewichte é ß 权重 λ ± × – “x” C:\\new"
    assert escaped(words) == words


def test_inspect_shows_names_written_out(tmp_path):
    path = tmp_path / "a.pt"
    weights = {EVIL: torch.ones(2), "b" + EVIL: torch.tensor([float("nan")])}
    entry = {"task": EVIL, "options": {EVIL: EVIL}}
    torch.save({"model": weights, "ema" + EVIL: weights, EVIL: 1, "spectra": entry, "epoch": EVIL}, path)
    for arguments in ((), ("--all",), ("--weights", EVIL)):
        shown = spectra("inspect", path, *arguments).output
        check(shown)
        assert "\\x1b[2K" in shown or arguments[:1] == ("--weights",)
    assert json.loads(spectra("inspect", path, "--json").stdout)[0]["task"] == EVIL


def test_a_name_of_a_file_or_folder_is_written_out(tmp_path):
    folder = tmp_path / "r\x1b[2Jun"
    folder.mkdir()
    torch.save({"weight": torch.ones(2)}, folder / "a\n\x1b[31mb.pt")
    (folder / "c\rd.pt").write_text("no checkpoint")
    shown = spectra("inspect", folder)
    check(shown.output)
    assert "\\x1b[2J" in shown.output
    check(spectra("inspect", folder / "not\x1b there").output)
    check(spectra("show", folder / "not\x1b there").output)
    check(spectra("inspect", f"--wei\x1b[2Kghts={EVIL}").output)


def test_keys_of_a_file_without_weights_are_written_out(tmp_path):
    torch.save({EVIL: 1}, tmp_path / "a.pt")
    check(spectra("inspect", tmp_path / "a.pt").output)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results file whose names and reasons are all hostile."""
    folder = tmp_path_factory.mktemp("evil")
    paths = [folder / f"{name}\x1b[2K\r.pt" for name in ("a", "b")]
    torch.save(network().state_dict(), paths[0])
    torch.save({"model": network().state_dict() | {EVIL: torch.ones(2)}}, paths[1])
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(8, 4, generator=generator), torch.randint(2, (8,), generator=generator))]
    task = Task(network(), nn.CrossEntropyLoss(), rows, name=EVIL)
    settings = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False)
    analyze_run(paths, lambda checkpoint: task, settings, out=folder / "run.h5")
    return folder / "run.h5"


@pytest.mark.parametrize("options", [(), ("--all",), ("--csv",), ("--budget",)])
def test_show_writes_them_out(results, options):
    shown = spectra("show", results, *options)
    assert shown.exit_code == 0, shown.output
    check(shown.output)
    assert "\\x1b[2K" in shown.output


def test_csv_and_json_stay_what_they_are(results):
    rows = list(csv.DictReader(io.StringIO(spectra("show", results, "--csv").stdout)))
    assert {row["checkpoint"].rpartition("/")[2] for row in rows} == {"a\\x1b[2K\\r.pt", "b\\x1b[2K\\r.pt"}

    check(spectra("show", results, "--json").stdout.replace("\\n", ""))


@pytest.mark.parametrize("form", [(), ("--csv",)])
def test_compare_writes_them_out(results, tmp_path, form):
    other = tmp_path / "o\x1b[2Kther.h5"
    other.write_bytes(results.read_bytes())
    check(spectra("compare", results, other, *form).output)


def test_an_error_is_one_line_whatever_it_quotes():
    error = CheckpointError(f"the lock is held by {EVIL}")
    error.add_note(EVIL)
    for one in (error, ValueError(EVIL), OSError(2, EVIL, EVIL)):
        check(one_line(one))
        assert len(one_line(one).splitlines()) == 1


def test_whatever_reaches_the_console_is_written_out():
    stream = io.StringIO()
    console = SafeConsole(file=stream, width=1000, markup=False, force_terminal=True, color_system=None)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    for one in (EVIL, Text(EVIL), table):
        console.print(one)
    shown = stream.getvalue()
    assert not set(shown) & set(ACTING)
