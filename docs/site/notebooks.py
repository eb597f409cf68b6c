"""Notebooks as Markdown: the text, the code and the outputs that are stored with it.

Run this file as a script to execute the notebooks and store their outputs, without Jupyter.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import warnings
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


def executed(file: Path) -> dict[str, Any]:
    """The notebook with new outputs: its code cells, run one after the other in one namespace."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")  # a figure is stored, and no window opened
    notebook: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            exec(compile(_joined(cell["source"]), f"{file.name}, cell {count}", "exec"), names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
        for number in plt.get_fignums():
            picture = io.BytesIO()
            plt.figure(number).savefig(picture, format="png", dpi=80, metadata={"Software": None})
            data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        plt.close("all")
        cell |= {"execution_count": count, "outputs": outputs}
    return notebook


def main() -> None:
    """Execute all notebooks, and write them with their outputs."""
    for file in _files(Path(__file__).parents[1]):
        file.write_text(json.dumps(executed(file), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
