"""Writes v1.h5, a small results file of format version 1, and v1.json, what must be read from it.

Run once, when the format was version 1. The files are kept as they are: they show that old files keep loading.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from run_files import SETTINGS, failed_record, make_record, make_spectrum  # noqa: E402

from spectra.results.storage.runfile import RunFile, load_trajectory  # noqa: E402


def main() -> None:
    path = HERE / "v1.h5"
    path.unlink(missing_ok=True)
    with RunFile.open(path, SETTINGS) as run:
        for epoch, operator, bn_mode in ((0.0, "hessian", "eval"), (0.0, "ggn", "train"), (1.0, "hessian", "eval")):
            run.append(make_record(epoch, operator, bn_mode, spectrum=make_spectrum(int(epoch), steps=8)))
        run.append(failed_record(2.0))
    records = [record.to_json() for record in load_trajectory(path)]
    (HERE / "v1.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
