"""The pages of the reference that are made from the code: commands, public names, estimators and measures.

mkdocs is not needed here: each function returns Markdown.
"""

from __future__ import annotations

import re

import click

import spectra
from spectra.results.measure_catalogue import CATALOGUE, invariance_table
from spectra.spectrum.estimators import reference_table
from spectra_cli.main import COMMANDS, main

# The title of a page of public names, and the packages whose names are on it.
NAMES = {
    "tasks": ("Tasks and checkpoints", ("task", "checkpoints")),
    "analyses": ("Analyses and results", ("analysis", "results", "errors", "frameworks", "runtime")),
    "operators": ("Operators", ("operators",)),
    "spectra": ("Spectra and estimates", ("krylov", "spectrum")),
    "exact": ("Exact quantities", ("exact",)),
    "sharpness": ("Sharpness measures", ("sharpness",)),
    "directions": ("The loss along directions", ("landscape",)),
}
# Classes that are not imported by users: what public names return, derive from or raise.
BEHIND = {
    "analyses": (
        *("results.series.Series", "results.values.Values", "results.record_sequence.RecordSequence"),
        *("analysis.settings.Settings", "spectrum.block_spectra.BlockSpectra"),
        *(f"errors.{kind}Error" for kind in ("Argument", "Task", "Data", "Checkpoint", "Numerics", "Storage")),
        *("errors.OutOfMemory", "errors.MissingDependency"),
    ),
    "operators": ("operators.curvature.CurvatureOperator", "operators.base.SymmetricOperator"),
    "spectra": ("spectrum.lanczos_output.LanczosOutput",),
    "exact": ("results.exact_trace.ExactTrace", "exact.diagonal.ExactDiagonal"),
    "sharpness": ("results.measure.Measure",),
}


def pages() -> dict[str, str]:
    """Path in the site -> Markdown, in the order of the navigation."""
    commands = {f"reference/commands/{name}.md": command_page(name) for name in COMMANDS}
    names = {f"reference/python/{name}.md": names_page(name) for name in NAMES}
    return commands | names | {"reference/estimators.md": estimators_page(), "reference/measures.md": measures_page()}


def command_page(name: str) -> str:
    """The page of a command: usage, text, and a table of the options under each of their headings."""
    top = click.Context(main, info_name="spectra")
    command = main.get_command(top, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=top)
    usage = " ".join(command.collect_usage_pieces(context))
    groups: dict[str, list[str]] = {}
    without = "Other" if any(hasattr(parameter, "group") for parameter in command.params) else "Options"
    for parameter in command.get_params(context):
        line = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if line is not None:
            heading = getattr(parameter, "group", without)
            groups.setdefault(heading, []).append(f"| {_code(line[0])} | {_plain(line[1])} |\n")
    tables = "".join(
        f"\n## {heading}\n\n| option | meaning |\n| --- | --- |\n{''.join(lines)}" for heading, lines in groups.items()
    )
    return f"# spectra {name}\n\n```\nspectra {name} {usage}\n```\n\n{_paragraphs(command.help or '')}\n{tables}"


def names_page(page: str) -> str:
    """The page of the public names whose home is in certain packages, and of the classes behind them."""
    title, packages = NAMES[page]
    here = [f"{home}.{name}" for name, home in spectra._HOME.items() if home.split(".")[1] in packages]
    text = f"# {title}\n\nThese names are imported from `spectra`.\n\n{_documented(here, 2)}"
    if page in BEHIND:
        text += "## Classes behind them\n\nFunctions above return or raise these, or classes derive from them.\n\n"
        text += _documented([f"spectra.{one}" for one in BEHIND[page]], 3)
    return text


def _documented(objects: list[str], level: int) -> str:
    """The directives of mkdocstrings for these objects, under their short names."""
    return "".join(
        f"::: {one}\n    options:\n      heading: {one.rpartition('.')[2]}\n      heading_level: {level}\n\n"
        for one in objects
    )


def estimators_page() -> str:
    """The table of the estimators, from their registry."""
    return f"""# Estimators

Every record has these numbers. [The quantities](../quantities.md) explains the columns and the errors, and has the
numbers that are computed on request.

{reference_table()}"""


def measures_page() -> str:
    """The sharpness measures, from their catalogue."""
    rows = "".join(
        f"| `{name}` | {_plain(entry.words)} | {_plain(entry.cost)} | {'yes' if entry.cheap else ''} |\n"
        for name, entry in CATALOGUE.items()
    )
    return f"""# Measures

`spectra analyze --metrics NAME,...` computes them. The cheap ones are computed by default, as far as that costs no more
than the spectrum. Costs are in gradients over the data, for `C` classes.
[The quantities](../quantities.md#measures-that-rescaling-does-not-move) has formulas, errors and conclusions.

| name | definition | cost | cheap |
| --- | --- | --- | --- |
{rows}
## Invariances

`=`: the measure does not change; `x`: it changes; `-`: it is not defined there.

{invariance_table()}"""


def _paragraphs(text: str) -> str:
    r"""The help of a command as Markdown: what follows ``\b`` keeps its lines."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip().replace("\r", "")):
        if "\b" in part:
            title, *lines = [line for line in part.replace("\b", "").splitlines() if line.strip()]
            block = "\n".join(line.strip() for line in lines)
            parts.append(f"{_plain(title.strip())}\n\n```\n{block}\n```")
        else:
            parts.append(_plain(" ".join(part.split())))
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """A cell with code: the pipe would end the cell even there on some renderers."""
    return f"<code>{_escaped(text)}</code>"


def _plain(text: str) -> str:
    """Plain text, in which only options, and code in backticks, are formatted."""
    parts = re.split(r"`([^`]*)`|(?<![\w-])(--?[a-z][a-z-]*)", text)
    return "".join(_escaped(part) if at % 3 == 0 else _code(part) for at, part in enumerate(parts) if part)


def _escaped(text: str) -> str:
    return "".join(f"&#{ord(sign)};" if sign in "&<>|*_[]`\\" else sign for sign in text)
