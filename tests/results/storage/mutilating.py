"""Mutilated files, each read in a process of its own with a time limit. A program:

    python mutilating.py FORMS FOLDER NUMBER SEED

FORMS are some of results, zip, legacy and safetensors, with commas between them. Prints a JSON count of what became of
each: `refused` in one clear line, `same` numbers, `other` numbers, and whatever must never happen: `crashed` (a
signal), `hung`, `unclear` (another error, or more than a line), with the first few.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import h5py
from run_files import SETTINGS, failed_record, make_record

from spectra.errors import SpectraError
from spectra.results.record import Record
from spectra.results.storage.checksum import sealed, unsealed
from spectra.results.storage.runfile import RunFile, load_trajectory

SECONDS = 20
MEMORY = 32 * 2**30  # of addresses, so that a length out of a damaged header is refused rather than had
OUTCOMES = ("refused", "same", "other", "unclear")
Mutilation = Callable[[bytes, random.Random], bytes]


# -- what is done to a file


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content))]


def cut_at_the_end(content: bytes, draw: random.Random) -> bytes:
    return content[: -draw.randrange(1, 200)]


def one_bit(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def some_bits(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(2, 50)):
        content = one_bit(content, draw)
    return content


def zeroed(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    size = min(draw.choice([16, 512, 4096]), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def with_garbage(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.choice([1, 85, 512, 5000]))


def repeated(content: bytes, draw: random.Random) -> bytes:
    """A block that was written twice, the second time over another one."""
    size = min(draw.choice([64, 512, 4096]), len(content) // 2)
    source, target = (draw.randrange(len(content) - size) for _ in range(2))
    return content[:target] + content[source : source + size] + content[target + size :]


def _in_a_dataset(content: bytes, draw: random.Random) -> bytes:
    """The HDF5 data with a bit flipped within a dataset of numbers of a record."""
    image = unsealed(content, "")
    places: list[tuple[int, int]] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.id.get_offset() is not None and "estimates" not in name:
            places.append((node.id.get_offset(), node.id.get_storage_size()))

    with h5py.File(io.BytesIO(image), "r") as file:
        file["records"].visititems(visit)
    offset, size = draw.choice(places)
    changed = bytearray(image)
    changed[offset + draw.randrange(size)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def in_a_dataset_of_a_file_without_seal(content: bytes, draw: random.Random) -> bytes:
    return _in_a_dataset(content, draw)


def in_a_dataset_under_a_new_seal(content: bytes, draw: random.Random) -> bytes:
    return sealed(_in_a_dataset(content, draw))


ANYWHERE = (truncated, cut_at_the_end, one_bit, some_bits, zeroed, with_garbage, repeated)
IN_RESULTS = (*ANYWHERE, in_a_dataset_of_a_file_without_seal, in_a_dataset_under_a_new_seal)


# -- what is read


def results(folder: Path) -> tuple[bytes, Callable[[Path], bytes]]:
    path = folder / "whole.h5"
    run = RunFile.open(path, SETTINGS)
    for record in (make_record(0), make_record(1), failed_record(2), make_record(1, "ggn")):
        run.append(record)

    def numbers(file: Path) -> bytes:
        trajectory = load_trajectory(file)
        left_out = any("left out" in note for note in trajectory.notes)
        return b"left out" if left_out else pickle.dumps([_numbers(record) for record in trajectory])

    return path.read_bytes(), numbers


def _numbers(record: Record) -> list[Any]:
    entry = record.to_json()
    entry.pop("notes", None)
    found: list[Any] = [json.dumps(entry, sort_keys=True)]
    if record.spectrum is not None:
        for part in record.spectrum.tridiagonals:
            found += [part.alphas.tobytes(), part.betas.tobytes(), part.exhausted, repr(part.orthogonality)]
        assert record.spectrum.tensor_forms is not None
        found += [record.spectrum.tensor_forms.tobytes(), record.spectrum.n]
    return found


def checkpoint(folder: Path, form: str) -> tuple[bytes, Callable[[Path], bytes]]:
    import torch
    from torch import nn

    from spectra.checkpoints.checkpoint import load_checkpoint

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    path = folder / ("whole.safetensors" if form == "safetensors" else "whole.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(network().state_dict(), path)
    else:
        content = {"model": network().state_dict(), "epoch": 3, "step": 300}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")

    def numbers(file: Path) -> bytes:
        model = network()
        found = load_checkpoint(file)
        found.load_into(model)
        weights = {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()}
        return pickle.dumps([found.epoch, found.step, str(sorted(weights.items()))])

    return path.read_bytes(), numbers


# -- each in a process


def outcome(numbers: Callable[[Path], bytes], path: Path, right: bytes, log: Path) -> str:
    process = os.fork()
    if process == 0:
        code = OUTCOMES.index("unclear")
        try:
            signal.alarm(SECONDS)  # ends the process, wherever it loops
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)  # HDF5 and torch may print
            found = numbers(path)
            if found == b"left out":
                code = OUTCOMES.index("refused")
            else:
                code = OUTCOMES.index("same" if found == right else "other")
        except SpectraError as error:
            words = str(error)
            if words.startswith(str(path)) and "\n" not in words and len(words) < 500:
                code = OUTCOMES.index("refused")
            log.write_text(words)
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"
    return OUTCOMES[os.WEXITSTATUS(status)]


def mutilate(form: str, folder: Path, number: int, seed: int) -> dict[str, Any]:
    content, numbers = results(folder) if form == "results" else checkpoint(folder, form)
    suffix = {"results": ".h5", "safetensors": ".safetensors"}.get(form, ".pt")
    # The name has no number, which would be taken for an epoch.
    path, log = folder / f"mutilated{suffix}", folder / "error.txt"
    path.write_bytes(content)
    right = numbers(path) if form == "results" else _elsewhere(numbers, path)
    counts: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    bad: list[str] = []
    kinds = IN_RESULTS if form == "results" else ANYWHERE
    for case in range(number):
        kind = kinds[case % len(kinds)]
        draw = random.Random(f"{seed} {case}")
        path.write_bytes(kind(content, draw))
        log.write_text("")
        found = outcome(numbers, path, right, log)
        counts[found] += 1
        by_kind.setdefault(kind.__name__, Counter())[found] += 1
        if found not in ("refused", "same"):
            bad.append(f"{kind.__name__}, seed '{seed} {case}': {found}: {log.read_text()[-700:]}")
    return {"counts": counts, "kinds": by_kind, "bad": bad[:5]}


def _elsewhere(numbers: Callable[[Path], bytes], path: Path) -> bytes:
    """What is read, in a process of its own: torch is not to have computed anything before the forks."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        os.write(writing, numbers(path))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read()
    os.waitpid(process, 0)
    return found


if __name__ == "__main__":
    forms, folder, number, seed = sys.argv[1:]
    print(json.dumps({form: mutilate(form, Path(folder), int(number), int(seed)) for form in forms.split(",")}))
