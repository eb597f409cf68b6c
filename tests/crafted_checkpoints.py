"""Checkpoints that torch.save would never write: pickles with chosen calls and states, in an archive that is whole."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from programs import environment


class Call:
    """Pickled as a call of a function, and a state for what it returns."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def saved(path: Path, cfg: Any = None, **beside: Any) -> Path:
    torch.save({"model": {"weight": torch.ones(3, 4), "bias": torch.arange(4.0)}, "cfg": cfg, **beside}, path)
    return path


def edited(path: Path, change: Any) -> Path:
    """The archive with its pickle changed, and the checksums of what it now holds."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, change(data) if name.endswith("/data.pkl") else data)
    return path


OPCODES = b"()]}NKJMXGc\x85\x86\x87\x88\x89Rb\x81aesu.qhrjQ\x8f0t\x80U\x8a"


def mutated_pickle(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A pickle with a few bits and opcodes changed, put in or taken out, and pieces of other pickles."""
    for _ in range(dice.choice([1, 1, 2, 5])):
        at, what = dice.randrange(len(data)), dice.randrange(5)
        if what == 0:
            data = data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        elif what == 1:
            data = data[:at] + bytes([dice.choice(OPCODES)]) + data[at + 1 :]
        elif what == 2:
            data = data[:at] + bytes([dice.choice(OPCODES)]) + data[at:]
        elif what == 3:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            data = data[:at] + other[start : start + dice.randrange(1, 80)] + data[at + dice.randrange(40) :]
        else:
            data = data[:at] + data[at + dice.randrange(1, 9) :]
        data = data or b"."
    return data


def in_child(code: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, so that a crash is an exit code."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


READ = """
import sys
from pathlib import Path
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import SpectraError
for path in sys.argv[1:]:
    try:
        words = "read\\t" + repr(load_checkpoint(path).metadata)[:2000]
    except SpectraError as error:
        words = f"refused\\t{error}"
    print(Path(path).stem, words, sep="\\t", flush=True)
"""
