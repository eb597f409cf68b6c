"""``spectra metrics``: the list of the sharpness measures."""

from __future__ import annotations

import json

import click

from spectra.results.measure_catalogue import CATALOGUE
from spectra_cli.layout import make_console, new_table, print_line


@click.command("metrics")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(as_json: bool) -> None:
    """List the sharpness measures: what each is, what it costs, and which changes of the weights leave it as it is.

    `spectra analyze --metrics NAME,...` computes them into the record. Cheap ones are computed by default, as far as
    that costs no more than the spectrum.
    """
    if as_json:
        entries = {
            name: {"what": entry.words, "cost": entry.cost, "invariant": entry.invariant, "cheap": entry.cheap}
            for name, entry in CATALOGUE.items()
        }
        click.echo(json.dumps(entries, indent=2))
        return
    console = make_console()
    table = new_table("name", "cheap", "cost", "unchanged by", "what it is", left=range(5))
    for name, entry in CATALOGUE.items():
        table.add_row(name, "yes" if entry.cheap else "", entry.cost, entry.invariant, entry.words)
    console.print(table)
    print_line(console, "cost in gradients over the data, C classes; +- and certificates are printed with the values")
