"""The experiments in `analyses/papers/`: their tables, the page built from them, and the smallest experiment."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from spectra import DenseOperator, Estimate, load_trajectory, slq
from spectra.errors import SpectraError

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "analyses" / "papers"
HEADER = "claim,paper,ours,error,verdict,remark\n"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the scripts are not beside the tests")


@pytest.fixture
def module(monkeypatch):
    """Import a module of the folder; it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCRIPTS)):
            del sys.modules[name]


def experiment(module, folder: Path, *arguments: str):
    text = "A title.\n\nWords.\n\n    python analyses/papers/tiny.py\n"
    return module("experiment").Experiment("tiny.py", text, ["--quick", "--out", str(folder), *arguments])


def tiny_run(exp):
    run = exp.train("digits-logistic", "--epochs", 1)
    return exp.analyze(run, "--last", "-m", 5, "-k", 2, "--samples", 64, "--metrics", "none", "--no-check")


def test_commands_run_once_and_again_when_an_option_differs(module, tmp_path, capsys):
    first = tiny_run(experiment(module, tmp_path))
    assert capsys.readouterr().out.count("spectra ") == 2
    again = experiment(module, tmp_path)
    found = tiny_run(again)
    assert again.spent_before > 0
    assert found.path == first.path
    assert str(tmp_path) not in capsys.readouterr().out  # nothing was run
    again.analyze(
        again.train("digits-logistic", "--epochs", 1), "--last", "-m", 4, "-k", 1, "--metrics", "none", "--no-check"
    )
    out = capsys.readouterr().out
    assert out.count("spectra ") == 1
    assert "spectra analyze OUT/runs/tiny-" in out
    assert str(tmp_path) not in out


def test_a_command_that_failed_is_run_again(module, tmp_path):
    for _ in range(2):
        with pytest.raises(Exception, match="no_such_option"):
            experiment(module, tmp_path).train("digits-logistic", "--set", "no_such_option=1")
    assert not list(tmp_path.glob("runs/*.json"))


def test_missing_data_are_a_reason_to_skip_and_leave_nothing(module, tmp_path):
    exp = experiment(module, tmp_path / "out", "--data", str(tmp_path / "nothing"))
    with pytest.raises(module("experiment").Skipped, match=r"tiny: skipped: .*cifar10\.npz: there are no such data"):
        exp.needs("cifar10.npz")
    assert not (tmp_path / "out").exists()


def test_a_table_is_read_as_it_was_written_with_or_without_its_command(module, tmp_path):
    exp = experiment(module, tmp_path)
    exp.add('a claim, with "quotes"', 1.5, "2", "-", "holds in part", "two | bars")
    path = exp.write()
    command, found = module("experiment").read_findings(path)
    assert command.startswith("python analyses/papers/tiny.py --quick --data DATA --out OUT; ")
    assert found == exp.findings
    lines = path.read_text().splitlines(keepends=True)
    assert lines[1] == HEADER
    path.write_text("".join(lines[1:]))
    assert module("experiment").read_findings(path) == (None, found)


def test_a_verdict_is_one_of_four(module, tmp_path):
    exp = experiment(module, tmp_path)
    with pytest.raises(ValueError, match="verdict='true': one of holds, holds in part, does not hold, not testable"):
        exp.add("a claim", "-", "-", "-", "true")
    table = tmp_path / "other.csv"
    table.write_text(HEADER + "a,b,c,d,true,f\n")
    with pytest.raises(SpectraError, match=r"other\.csv: verdict 'true'"):
        module("experiment").read_findings(table)
    table.write_text("claim,verdict\na,holds\n")
    with pytest.raises(SpectraError, match="the columns must be claim, paper, ours, error, verdict, remark"):
        module("experiment").read_findings(table)


def test_the_page_has_each_finding_and_counts_the_verdicts(module, tmp_path):
    table = tmp_path / "deep_linear.csv"
    rows = ["one,-,2 | 3,0.1,holds,", "two,-,4,0.1,does not hold,why", "three,-,5,0.1,holds,"]
    table.write_text(
        "# python analyses/papers/deep_linear.py --quick --data DATA --out OUT; 7 s\n" + HEADER + "\n".join(rows)
    )
    page = module("page").built(tmp_path, tmp_path)
    title, words = module("page").text_of(SCRIPTS / "deep_linear.py")
    assert f"## {title}\n\n{words}\n" in page
    assert page.split("\n## ")[0].splitlines()[-1].endswith("| 2 |  | 1 |  |")
    assert "| one | - | 2 \\| 3 | 0.1 | **holds** |  |" in page
    assert "| two | - | 4 | 0.1 | **does not hold** | why |" in page
    assert "7 s on one core of two." in page
    assert "not run yet" in page  # the full form
    assert "![" not in page  # there is no figure


@pytest.mark.parametrize("order", ["Words.\n\n    python a.py\n", "    python a.py\n    python b.py\n\nWords.\n"])
def test_the_description_is_without_the_command_wherever_that_is(module, tmp_path, order):
    (tmp_path / "a.py").write_text(f'"""A title.\n\n{order}"""\n')
    assert module("page").text_of(tmp_path / "a.py") == ("A title", "Words.")


def test_the_page_in_the_repository_is_the_one_of_its_tables(module):
    page = module("page")
    assert page.PAGE.read_text(encoding="utf-8") == page.built()
    for table in page.RESULTS.glob("*.csv"):
        assert (SCRIPTS / table.with_suffix(".py").name).is_file()
        assert (page.FIGURES / table.with_suffix(".png").name).is_file()


def test_the_deep_linear_example_from_the_checkpoint_to_the_table(module, tmp_path, monkeypatch, capsys):
    script = module("deep_linear")
    monkeypatch.setattr(script, "SCALES", (1.0, 3.0))
    script.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "deep_linear.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "deep_linear.csv").open() as stream:
        next(stream)
        rows = list(csv.DictReader(stream))
    assert [row["verdict"] for row in rows] == ["does not hold", "does not hold", "holds in part", "holds", "holds"]
    assert rows[0]["ours"] == "eigenvalues 0.040267, 0.10603, 0.58267; trace 0.72897"  # as in docs/corrections.md
    assert rows[0]["paper"].startswith("2.4299 ")
    assert all(float(rows[i]["error"]) < 1e-12 for i in (0, 3, 4))


def test_weight_decay_on_digits_from_the_training_to_the_table(module, tmp_path, monkeypatch):
    script = module("weight_decay")
    names = ((script.LOGISTIC, "digits-logistic"), (script.MLP, "digits-mlp"))
    networks = [script.Network(name, recipe, 1, (0, 5e-4), {}, ("-m", 6, "-k", 2)) for name, recipe in names]
    monkeypatch.setattr(script, "QUICK", networks)
    script.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "weight_decay.png").is_file()
    _, found = module("experiment").read_findings(tmp_path / "weight_decay.csv")
    assert [one.claim.partition(":")[0] for one in found] == [script.LOGISTIC] * 2 + [
        script.MLP,
        script.LOGISTIC,
        script.MLP,
    ]
    files = sorted(tmp_path.glob("runs/*.h5"))
    records = [record for file in files for record in load_trajectory(file)]
    assert len(records) == 4
    printed = {f"{record.estimates['lambda_max'].value:.4g}" for record in records}
    assert set(found[0].ours.split(", ")) <= printed


def estimate(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, None, low, high, 1)


def test_what_rises_only_within_its_errors_is_not_called_rising(module):
    rising = module("weight_decay")._rising
    assert rising([estimate(1, 2), estimate(3, 4), estimate(5, 6)]) == "holds"
    assert rising([estimate(1, 2), estimate(1.5, 4), estimate(5, 6)]) == "holds in part"
    assert rising([estimate(1, 4), estimate(2, 5), estimate(3, 6)]) == "does not hold"
    order = module("weight_decay")._order
    assert order([0.90, 0.91, 0.93], 0.03, 0.01) == "holds"
    assert order([0.90, 0.89, 0.93], 0.03, 0.01) == "holds in part"
    assert order([0.90, 0.901, 0.902], 0.002, 0.01) == "not testable here"
    assert order([0.90, 0.89, 0.87], -0.03, 0.01) == "does not hold"


def test_both_effects_must_be_beyond_their_errors(module):
    both, sign = module("weight_decay")._both, module("weight_decay")._sign
    assert (sign(0.1, True), sign(-0.1, True), sign(0.1, False)) == ("yes", "no", "within the error")
    assert both("yes", "yes") == "holds"
    assert both("yes", "no") == both("within the error", "yes") == "holds in part"
    assert both("no", "within the error") == "does not hold"
    assert both("within the error", "within the error") == "not testable here"


def test_the_error_of_a_gain_is_that_of_paired_images(module):
    one, other = np.array([1, 1, 1, 0] * 25, dtype=bool), np.array([1, 1, 0, 0] * 25, dtype=bool)
    outcomes = [module("experiment").Outcome(0.0, 0.0, 0.0, float(c.mean()), c) for c in (one, other)]
    gain, error = outcomes[0].gain_over(outcomes[1])
    assert gain == 0.25
    assert error == pytest.approx(np.sqrt(0.25 * 0.75 / 99))  # of the share of images on which they differ
    assert outcomes[0].gain_over(outcomes[0]) == (0.0, 0.0)


def test_a_run_that_begins_above_the_edge_has_no_crossing(module):
    def run(*largest):
        values = np.array(largest)
        return module("edge_of_stability").Run(0.1, np.arange(len(values)), values, 0.0, values)

    assert run(10.0, 19.0, 21.0, 19.5, 20.5).crossing == 2
    assert run(10.0, 19.0).crossing is None
    assert run(30.0, 19.0, 21.0).crossing is None


def test_fewer_steps_are_those_of_the_same_probes(module):
    operator = DenseOperator(np.diag([1.0, 2, 3, 4, 50, 60, 70, 80]))
    full, short = (slq(operator, num_probes=2, lanczos_steps=m) for m in (8, 3))
    cut = module("rank_degeneracy").of_fewer_steps(full, 3)
    np.testing.assert_allclose(cut.nodes[0], short.nodes[0], rtol=1e-10)
    np.testing.assert_allclose(cut.weights[0], short.weights[0], atol=1e-12)
