"""Write docs/papers.md from the tables of the experiments.

    python analyses/papers/page.py papers      # take the tables and figures of this folder over first
    python analyses/papers/page.py             # from the tables in analyses/papers/results

A section per table: the first lines of the script's docstring, the command, the figure and the findings.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiment import VERDICTS, read_findings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS, FIGURES, PAGE = HERE / "results", ROOT / "docs" / "images" / "papers", ROOT / "docs" / "papers.md"

HEAD = """# Experiments of the papers

<!-- Written by analyses/papers/page.py from analyses/papers/results: change the scripts, not this page. -->

Each script in `analyses/papers/` repeats an experiment of a paper: it trains with `spectra train`, analyses with
`spectra analyze`, and sets the paper's claim and number beside ours. The **quick** form runs in minutes on two cores
with real data, at a smaller scale than the paper: its verdicts are of that scale, and say nothing about the paper's
own setting. The **full** form (without `--quick`) has the paper's setting and needs a GPU{unrun}.

```
make papers-quick DATA=data            # every quick form, and this page
```

`DATA` is a folder with `MNIST/raw` (the IDX files) and `cifar10.npz`. Nothing is downloaded; a script whose data are
missing says so and stops. The tags of the papers are those of [Papers and corrections](corrections.md). Errors are
those of the estimates (95 % where nothing else is said), and not of the choice of a seed, unless seeds are named.
"""


def text_of(script: Path) -> tuple[str, str]:
    """The title of a script and its description: its docstring without the command lines, which are indented."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
    title, _, rest = docstring.partition("\n")
    return title.rstrip("."), re.sub(r"\n{3,}", "\n\n", re.sub(r"^    .*\n?", "", rest, flags=re.MULTILINE)).strip()


def section(table: Path, figure: Path) -> tuple[str, str]:
    """The row of the overview, and the section of an experiment."""
    command, findings = read_findings(table)
    title, words = text_of(HERE / f"{table.stem}.py")
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    counts = Counter(one.verdict for one in findings)
    row = f"| [{title}](#{anchor}) | " + " | ".join(str(counts[word] or "") for word in VERDICTS) + " |"
    lines = [f"## {title}", "", words, ""]
    if command:
        call, _, seconds = command.partition("; ")
        lines += ["```", call, "```", "", f"{seconds} on one core of two." if "--quick" in call else f"{seconds}.", ""]
    if figure.exists():
        lines += [f"![{title}](images/papers/{figure.name})", ""]
    lines += ["| claim | paper | here | error | verdict | remark |", "|---|---|---|---|---|---|"]
    for one in findings:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in one._replace(verdict=f"**{one.verdict}**")]
        lines.append("| " + " | ".join(cells) + " |")
    return row, "\n".join(lines) + "\n"


def built(results: Path = RESULTS, figures: Path = FIGURES) -> str:
    """The page."""
    tables = sorted(results.glob("*.csv"))
    unrun = "" if any("--quick" not in (read_findings(one)[0] or "--quick") for one in tables) else ": not run yet"
    parts = [section(table, figures / f"{table.stem}.png") for table in tables]
    overview = f"| experiment | {' | '.join(VERDICTS)} |\n|---|{'---|' * len(VERDICTS)}\n"
    rows = "\n".join(row for row, _ in parts)
    return "\n".join([HEAD.format(unrun=unrun), overview + rows + "\n", *(text for _, text in parts)])


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if given:
        FIGURES.mkdir(parents=True, exist_ok=True)
        tables = Path(given[0]).glob("*.csv")
        for table in (one for one in tables if (HERE / f"{one.stem}.py").is_file()):  # others belong to a script
            RESULTS.mkdir(exist_ok=True)
            shutil.copy(table, RESULTS / table.name)
            if (figure := table.with_suffix(".png")).exists():
                shutil.copy(figure, FIGURES / figure.name)
    PAGE.write_text(built(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
