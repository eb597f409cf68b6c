"""Notebooks as Markdown: the text, the code and the outputs that are stored with it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def pages(docs: Path) -> dict[str, str]:
    """Path in the site -> Markdown, for each notebook."""
    return {f"notebooks/{file.stem}.md": _page(file) for file in _files(docs)}


def pictures(docs: Path) -> dict[str, bytes]:
    """Path in the site -> PNG file, for each picture among the outputs of the notebooks."""
    found = {}
    for file in _files(docs):
        for at, cell in enumerate(_cells(file)):
            for number, output in enumerate(cell.get("outputs", ())):
                if (data := output.get("data", {}).get("image/png")) is not None:
                    found[f"notebooks/{_picture(file, at, number)}"] = base64.b64decode(_joined(data))
    return found


def _files(docs: Path) -> list[Path]:
    return sorted((docs / "notebooks").glob("*.ipynb"))


def _cells(file: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return cells


def _page(file: Path) -> str:
    parts = []
    for at, cell in enumerate(_cells(file)):
        text = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for number, output in enumerate(cell.get("outputs", ())):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![figure]({_picture(file, at, number)})")
            elif printed := _joined(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{printed.rstrip()}\n```")
    parts.append(f"[The notebook]({file.name}), to be run in Jupyter.")
    return "\n\n".join(parts) + "\n"


def _picture(file: Path, cell: int, number: int) -> str:
    return f"{file.stem}-{cell}-{number}.png"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
