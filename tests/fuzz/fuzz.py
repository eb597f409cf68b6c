"""Mutated inputs for the three readers of spectra: results files, checkpoints and the command line. A program:

    python fuzz.py [--seconds S | --cases N] [--seed N] [--readers results,checkpoints,commands] [--out FOLDER]
    python fuzz.py --replay FOLDER/CASE

Every case is a command of spectra on a mutated input, run in a child process with bounds of memory and time. A child
runs many cases, and the case on which it ended is known. What must not happen (see `judge`) is stored in the folder:
the input, the command, and what it printed. `--replay` runs a stored case once more. The last line is a JSON count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parent / place) for place in (".", "..", "../results/storage"))

from mutations import CHECKPOINTS, DAMAGE, RESULTS, WORDS
from mutilating import ANYWHERE
from run_files import SETTINGS, failed_record, make_record, make_spectrum

from spectra.results.storage.runfile import RunFile

SECONDS = 30  # of one case
MEMORY = 12 * 2**30  # of addresses, of which torch has some from the start
BATCH = 40  # cases of one child
ACTING = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u200b\u200e\u200f\u2028\u2029\u061c\ufeff"} - {"\n"}
ACTING |= {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


@dataclass
class Case:
    """A command in a folder of its own."""

    name: str
    mutation: str
    command: list[str]  # paths are relative to the folder
    files: dict[str, bytes] = field(default_factory=dict)
    same: str | None = None  # the output that it must have if it succeeds


# --- the inputs ---------------------------------------------------------------------------------------------------


class Inputs:
    """Valid files, made once, and the cases that are drawn from them."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.folder = folder
        path = folder / "whole.h5"
        run = RunFile.open(path, SETTINGS)
        for record in (make_record(0, test_spectrum=make_spectrum(3)), make_record(1), failed_record(2)):
            run.append(record)
        self.results = path.read_bytes()
        torch.manual_seed(0)
        weights = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)).state_dict()
        content = {"model": weights, "epoch": 3, "args": {"lr": 0.1, "name": "net"}, "losses": [0.5, 0.25]}
        for kind in ("zip", "legacy"):
            torch.save(content, folder / kind, _use_new_zipfile_serialization=kind == "zip")
        self.checkpoints = {kind: (folder / kind).read_bytes() for kind in ("zip", "legacy")}
        try:
            from safetensors.torch import save
        except ImportError:
            self.kinds = [kind for kind in CHECKPOINTS if kind != "safetensors"]
        else:
            self.kinds = list(CHECKPOINTS)
            self.checkpoints["safetensors"] = save(weights)
        names = dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")
        self.sidecars = {
            "pytorch_model.bin.index.json": {"metadata": {"total_size": 1}, "weight_map": names},
            "trainer_state.json": {"epoch": 0.5, "global_step": 8, "log_history": [{"loss": 1}]},
            "adapter_config.json": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]},
        }
        torch.save(weights, folder / "shard")
        self.shard = (folder / "shard").read_bytes()
        self.right: dict[str, str] = {}

    def draw(self, reader: str, seed: str) -> Case:
        """The case of a seed; the same one every time."""
        draw = random.Random(seed)
        made: Case = {"results": self._of_results, "checkpoints": self._of_checkpoint, "commands": self._of_command}[
            reader
        ](draw)
        made.name = seed.replace(" ", "-")
        return made

    def _of_results(self, draw: random.Random) -> Case:
        mutation = draw.choice(RESULTS)
        file, damaged = mutation(self.results, draw), mutation in DAMAGE
        show = ["show", "run.h5"]
        commands = [
            *([*show, "--json"], [*show, "--csv"], show, [*show, "--all"], [*show, "--budget"]),
            *([*show, "--epoch", "0"], [*show, "--at", "degeneracy=0.1"], ["compare", "run.h5", "whole.h5"]),
            *(["merge", "run.h5", "--out", "merged.h5"], ["merge", "run.h5", "whole.h5", "--out", "merged.h5"]),
            ["plot", "run.h5", "--what", draw.choice(["layers", "trajectory", "degeneracy"])],
        ]
        command = [*show, "--json"] if damaged else draw.choice(commands)
        files = {"run.h5": file, "whole.h5": self.results}
        return Case("", mutation.__name__, command, files, self.right.get("results") if damaged else None)

    def _of_checkpoint(self, draw: random.Random) -> Case:
        kind = draw.choice(self.kinds)
        mutation = draw.choice(CHECKPOINTS[kind])
        command = ["inspect", "", *draw.choice([[], ["--json"], ["--json"], ["--all"]])]
        if kind == "sidecar":
            command[1] = "checkpoint-8"
            files = {f"checkpoint-8/{name}": json.dumps(value).encode() for name, value in self.sidecars.items()}
            files["checkpoint-8/pytorch_model-00001-of-00001.bin"] = self.shard
            chosen = f"checkpoint-8/{draw.choice(sorted(self.sidecars))}"
            if not chosen.endswith("adapter_config.json"):
                del files["checkpoint-8/adapter_config.json"]
            return Case("", f"{kind} {mutation.__name__}", command, files | {chosen: mutation(files[chosen], draw)})
        command[1] = "net.safetensors" if kind == "safetensors" else "net.pt"
        checked = kind == "zip" and mutation in ANYWHERE
        if checked:
            command = ["inspect", "net.pt", "--json"]
        files = {command[1]: mutation(self.checkpoints[kind], draw)}
        return Case("", f"{kind} {mutation.__name__}", command, files, self.right.get("zip") if checked else None)

    def _of_command(self, draw: random.Random) -> Case:
        import importlib

        from spectra_cli.main import COMMANDS

        analyze = [
            "analyze",
            "net.pt",
            "--task",
            "task.py:task",
            "--out",
            "new.h5",
            "--lanczos-steps",
            "2",
            "--probes",
            "1",
        ]
        bases = {
            "show": ["show", "whole.h5"],
            "plot": ["plot", "whole.h5", "--what", "layers"],
            "compare": ["compare", "whole.h5", "whole.h5"],
            "merge": ["merge", "whole.h5", "--out", "merged.h5"],
            "inspect": ["inspect", "net.pt"],
            "metrics": ["metrics"],
            "analyze": analyze,
        }
        name = draw.choice([*bases, "show", "compare", "inspect"])
        command = importlib.import_module(COMMANDS[name][0]).command
        words = list(bases[name])
        options = [p for p in command.params if p.opts[0].startswith("-") and p.opts[0] not in ("--out", "--threads")]
        for option in draw.sample(options, min(len(options), draw.choice([1, 1, 2]))):
            words.append(draw.choice(option.opts + option.secondary_opts))
            if not option.is_flag and not option.count:
                words.append(draw.choice(WORDS))
        if draw.random() < 0.15:
            words.insert(draw.randrange(1, len(words) + 1), draw.choice([w for w in WORDS if w not in ("*", "~")]))
        files = {"whole.h5": self.results, "net.pt": self.checkpoints["zip"], "task.py": TASK}
        return Case("", f"options of {name}", words, files)


TASK = b"""import spectra, torch
def task():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    return spectra.Task(net, torch.nn.CrossEntropyLoss(), [(torch.randn(8, 5), torch.arange(8) % 4)] * 2)
"""


# --- one case -----------------------------------------------------------------------------------------------------


def run(case: Case, folder: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, in this process; both files are replaced."""
    from spectra_cli.main import main

    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    for name, content in case.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    os.chdir(work)
    paths = [folder / "stdout", folder / "stderr"]
    kept = [os.dup(1), os.dup(2)]
    code: Any = None
    for number, path in enumerate(paths, 1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (open(os.dup(number), "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    try:
        main.main(list(case.command), prog_name="spectra")
    except SystemExit as end:
        code = end.code
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = streams
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
            os.close(handle)
    out, err = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return code if isinstance(code, int) else 0 if code is None else 1, out, err


def judge(case: Case, code: int, out: str, err: str) -> str | None:
    """What is wrong with how a command ended, or None."""
    if "Traceback (most recent call last)" in out + err:
        return "traceback"
    if "(unexpected; --debug shows where)" in err:
        return "unexpected error"
    if acting := ACTING & {*out, *err}:
        return f"control character {min(acting)!r} on the terminal"
    if any(line.startswith("spectra: error: all is well") for line in (out + err).splitlines()):
        return "text of the input as a line of the program"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code and not err.strip() and not out.strip():
        return "an error without a word"
    if "out of memory" in err:
        return "out of memory"
    if code == 0 and case.same is not None and _numbers(out) != _numbers(case.same) and "left out" not in err:
        return "a damaged file was read as whole"
    return None


def _numbers(out: str) -> Any:
    """What a JSON list of records or checkpoints says, but for the SHA-256 of the file and notes about it."""
    return [
        {name: value for name, value in entry.items() if name not in ("sha256", "bytes", "notes")}
        for entry in json.loads(out)
    ]


def in_child(cases: list[Case], folder: Path, memory: int = MEMORY) -> tuple[list[tuple[int, str | None]], str | None]:
    """The verdicts of the cases that ended, and how the child ended on the next one, if it did not come to the end."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for case in cases:
                signal.alarm(SECONDS)
                code, out, err = run(case, folder)
                os.write(writing, (json.dumps([code, judge(case, code, out, err)]) + "\n").encode())
        except BaseException as error:
            os.write(writing, (json.dumps([1, f"the fuzzer: {error!r}"]) + "\n").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        found = [tuple(json.loads(line)) for line in pipe]
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return found, f"no end within {SECONDS} s" if number == signal.SIGALRM else signal.Signals(number).name
    return found, None if len(found) == len(cases) else "the child ended"


# --- all of them --------------------------------------------------------------------------------------------------


def store(case: Case, finding: str, out: Path, folder: Path) -> None:
    """Keep a case so that `--replay` can run it."""
    place = out / case.name
    shutil.rmtree(place, ignore_errors=True)
    for name, content in case.files.items():
        (place / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "files" / name).write_bytes(content)
    about = {"finding": finding, "mutation": case.mutation, "command": case.command, "same": case.same}
    (place / "case.json").write_text(json.dumps(about, indent=2))
    for name in ("stdout", "stderr"):
        if (folder / name).exists():
            shutil.copy(folder / name, place / name)


def stored(place: Path) -> Case:
    """A case that was kept."""
    about = json.loads((place / "case.json").read_text())
    files = {str(p.relative_to(place / "files")): p.read_bytes() for p in (place / "files").rglob("*") if p.is_file()}
    return Case(place.name, about["mutation"], about["command"], files, about["same"])


def fuzz(readers: list[str], seed: int, more: Callable[[int], bool], out: Path) -> dict[str, Any]:
    """Run cases, the readers in turn, while there are to be more of them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs = Inputs(folder)
        for name, command, files in (
            ("results", ["show", "run.h5", "--json"], {"run.h5": inputs.results}),
            ("zip", ["inspect", "net.pt", "--json"], {"net.pt": inputs.checkpoints["zip"]}),
        ):
            inputs.right[name] = _output(Case(name, "", command, files), folder)
        counts: Counter[str] = Counter()
        findings: dict[str, str] = {}
        number = 0
        while more(number):
            cases = []
            while len(cases) < BATCH and more(number):
                reader = readers[number % len(readers)]
                cases.append(inputs.draw(reader, f"{reader} {seed} {number}"))
                number += 1
            while cases:
                found, end = in_child(cases, folder)
                if end is not None and len(found) < len(cases):
                    found.append((1, end))
                for case, (code, finding) in zip(cases, found):
                    what = "finding" if finding else "read" if code == 0 else "refused"
                    counts[f"{case.name.split('-')[0]} {what}"] += 1
                    if finding:
                        findings[case.name] = finding
                        in_child([case], folder)
                        store(case, finding, out, folder)
                        print(f"{case.name}: {case.mutation}: {finding}", file=sys.stderr, flush=True)
                cases = cases[len(found) :]
        return {"cases": number, "counts": dict(sorted(counts.items())), "findings": findings}


def _output(case: Case, folder: Path) -> str:
    """What the command prints, in a child: torch is not to have computed anything before the forks."""
    (_, finding), *_ = in_child([case], folder)[0]
    assert finding is None, (finding, (folder / "stderr").read_text())
    return (folder / "stdout").read_text()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default="results,checkpoints,commands")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path)
    asked = parser.parse_args()
    # What every child uses is imported once, before the forks.
    import spectra_cli.analyze
    import spectra_cli.compare
    import spectra_cli.inspect
    import spectra_cli.plot
    import spectra_cli.show  # noqa: F401

    if asked.replay is not None:
        with tempfile.TemporaryDirectory() as place:
            case = stored(asked.replay)
            found, end = in_child([case], Path(place))
            print(f"spectra {' '.join(map(ascii, case.command))}")
            for name in ("stdout", "stderr"):
                print(f"--- {name}", ascii((Path(place) / name).read_text(errors="replace"))[:5000], sep="\n")
            print(f"--- {end or found[0][1] or 'nothing is wrong'}")
            return int(bool(end or found[0][1]))
    out = asked.out.resolve()
    end_at = time.monotonic() + (asked.seconds or 0)
    more = (lambda _: time.monotonic() < end_at) if asked.seconds else (lambda number: number < asked.cases)
    counted = fuzz(asked.readers.split(","), asked.seed, more, out)
    print(json.dumps(counted))
    return int(bool(counted["findings"]))


if __name__ == "__main__":
    sys.exit(main())
