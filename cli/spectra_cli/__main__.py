"""``python -m spectra_cli``: the command ``spectra``, for launchers that start a module in several processes."""

from spectra_cli.main import main

main(prog_name="spectra")
