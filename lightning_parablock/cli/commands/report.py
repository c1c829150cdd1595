"""``lightning-parablock report``: one HTML page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.places import reason, refuse_unwritable_file

_COMMAND = COMMANDS["report"]


def report_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(prog=_COMMAND.prog, description=f"{_COMMAND.help} It opens without a network.")
    parser.add_argument("run_dir", type=str, help="The run's folder, which fit prints at its end.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="The page to write; default: report.html in the run's folder."
    )
    return parser


def run_report(args: Sequence[str]) -> None:
    """Run ``report`` on the words that follow it and print the page's name.

    Raises:
        ConfigurationError: the folder is no run's, or the page cannot be written there.
    """
    options = report_parser().parse_args(list(args))
    from lightning_parablock.report.page import PAGE_NAME, write_page  # late: plotly takes a second
    from lightning_parablock.runs.files import read_run

    folder = Path(options.run_dir).expanduser()
    output = Path(options.output).expanduser() if options.output else folder / PAGE_NAME
    run = read_run(folder)
    refuse_unwritable_file(output, "output" if options.output else "the page")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_page(run, output)
    except OSError as error:
        raise ConfigurationError(f"the page cannot be written to {output}: {reason(error)}") from error
    print(f"report: {output}")
