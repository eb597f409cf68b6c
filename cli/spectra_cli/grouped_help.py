"""Options under headings in the help of a command that has many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def grouped_option(group: str, *names: str, **options: Any) -> Callable[[_Command], _Command]:
    """`click.option` for an option that is listed under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **options)


class GroupedOption(click.Option):
    """An option that is listed under a heading."""

    def __init__(self, *args: Any, group: str = "Options", **options: Any) -> None:
        super().__init__(*args, **options)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists the options by their headings, in the order of the first of each."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if line is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(line)
        groups["Other"] = groups.pop("Other")  # --help at least
        for heading, lines in groups.items():
            with formatter.section(heading):
                formatter.write_dl(lines)
