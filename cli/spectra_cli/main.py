"""The command ``spectra``: its subcommands, loaded when they run, and the one place where errors become one line.

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted. Results go to standard output, notes and errors to
standard error. No torch is imported before a subcommand that needs it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from spectra.errors import RanksError, SpectraError, escaped
from spectra.task.user_errors import place_of
from spectra.version import __version__
from spectra_cli.launcher import is_first_process
from spectra_cli.terminal import say

# name -> (module with the click command `command`, one line for the help)
COMMANDS = {
    "demo": ("spectra_cli.demo", "Train a small network, analyse its checkpoints, draw the figures."),
    "train": ("spectra_cli.train", "Train a built-in network by a recipe, with a checkpoint per epoch."),
    "analyze": ("spectra_cli.analyze", "Compute Hessian spectra of checkpoints, and save them in a file."),
    "plan": ("spectra_cli.plan", "Predict what an analysis will cost, and what would make it cheaper."),
    "doctor": ("spectra_cli.doctor", "Find out what would prevent or spoil an analysis, before it is run."),
    "slice": ("spectra_cli.slice", "Follow the loss along directions: slices, kinks, critical sharpness."),
    "watch": ("spectra_cli.watch", "Analyse checkpoints as training writes them."),
    "merge": ("spectra_cli.merge", "Join the files of several jobs into one."),
    "show": ("spectra_cli.show", "Print the numbers in a results file, each with its error."),
    "plot": ("spectra_cli.plot", "Draw the figures of a results file."),
    "report": ("spectra_cli.report", "Write one HTML page of results files, with interactive figures."),
    "log": ("spectra_cli.log", "Log the records of a results file in TensorBoard or Weights & Biases."),
    "compare": ("spectra_cli.compare", "Compare two or more runs, with what the noise of probes and of runs explains."),
    "metrics": ("spectra_cli.metrics", "List the sharpness measures, their cost and what leaves them unchanged."),
    "inspect": ("spectra_cli.inspect", "Show what is in a checkpoint file or folder."),
}

USAGE, ERROR, INTERRUPTED = 2, 1, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and whose errors end here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # from the table: asking the commands themselves would import torch
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name, help=words) for name, (_, words) in COMMANDS.items()]  # from the table, likewise
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [item for item in found if item.value.startswith(incomplete)] + options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}: there are {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and turn whatever is raised into one line on standard error and an exit code."""
        given = list(sys.argv[1:] if args is None else args)
        debug = os.environ.get("SPECTRA_DEBUG", "").lower() not in ("", "0", "false")
        if "--debug" in given:  # wherever it is: behind the subcommand is where it is typed in the end
            given.remove("--debug")
            debug = True
        prog_name = prog_name or "spectra"
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(given, prog_name, complete_var, standalone_mode=False, **extra)
        except (click.exceptions.Exit, SystemExit):
            raise
        except BaseException as error:
            code = _report(error, debug)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spectra", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error (or SPECTRA_DEBUG=1).")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Hessian spectra of neural networks, from a checkpoint, every number with its error.

    Start with `spectra demo`; then `spectra analyze CKPT --task FILE.py:FUNCTION` for a checkpoint of your own.
    """
    _send_warnings_to_stderr()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def one_line(error: BaseException) -> str:
    """The message of an error, with its notes, as the command line prints it."""
    text = str(error)
    if not isinstance(error, SpectraError):
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename is not None else ""
            text = f"{where}{error.strerror}"
        elif isinstance(error, MemoryError) or _is_out_of_memory(error):
            text = f"out of memory{_remark(error)}: try a smaller --batch-size, --samples or --lanczos-steps"
        else:
            place = place_of(error)
            text = f"{type(error).__name__}: {_first_line(error)} (unexpected; --debug shows where)"
            text += f", raised by {place}" if place else ""
    elif not text:
        text = type(error).__name__
    notes = " ".join(note.strip() for note in getattr(error, "__notes__", ()))
    text = f"{text} ({notes})" if notes else text
    return text if getattr(error, "in_several_lines", False) else escaped(text)


def print_error(error: BaseException) -> None:
    """Print an error as one line on standard error."""
    click.echo(f"spectra: error: {one_line(error)}", err=True)


def _report(error: BaseException, debug: bool) -> int:
    """Print the error, if there is anything to print, and return the exit code."""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, click.Abort) and isinstance(error.__cause__, (KeyboardInterrupt, type(None)))
    ):
        click.echo("spectra: interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `spectra show run.h5 | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (so that flushing at exit does not fail again)
        return ERROR
    if isinstance(error, click.ClickException):
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" ({error.ctx.command_path} --help)"
        say(f"spectra: error: {' '.join(error.format_message().split())}{hint}")
        return error.exit_code
    if not is_first_process() and not isinstance(error, RanksError):  # the first process says it
        return ERROR
    if debug:
        for line in "".join(traceback.format_exception(error)).splitlines():
            say(line)
    print_error(error)
    return ERROR


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _remark(error: BaseException) -> str:
    return f": {_first_line(error)}" if str(error) else ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


class _StderrHandler(logging.Handler):
    """Warnings of the library, one line each, wherever standard error now goes."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"spectra: {record.levelname.lower()}: {record.getMessage()}")


def _send_warnings_to_stderr() -> None:
    logger = logging.getLogger("spectra")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler(logging.WARNING))


if __name__ == "__main__":
    main()
