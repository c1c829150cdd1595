"""The options that this package adds to LightningCLI's commands, each declared once."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from lightning_parablock.callbacks.sight import Shared


def add_run_options(parser: LightningArgumentParser, command: str) -> None:
    """Add them to the parser of a command."""
    parser.add_argument(
        "--run_dir",
        type=str | None,
        default=None,
        help="Folder of this run: logs, configuration, manifest, timeline. Default: a folder named by date and "
        "time in trainer.default_root_dir, or in ./runs.",
    )
    parser.add_argument(
        "--shared",
        type=Shared,
        default="clients",
        help="What each client shares besides its deltas: 'clients' (its losses, rounds, times, host and the sizes "
        "of its data), 'aggregates' (only sums, maxima and minima over all clients), or 'nothing'.",
    )
    if command == "fit":
        _add_fit_options(parser)
    if command == "predict":
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="New JSON Lines file for the predictions, one object per row; sites that have names write one "
            "each, such as predictions-a.jsonl. Default: predictions.jsonl in the run's folder.",
        )


def _add_fit_options(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print clients, blocks, bytes per round, memory, the first rounds and the data, and stop before training.",
    )
    parser.add_argument(
        "--validate_before_and_after",
        type=bool,
        default=True,
        help="Measure the held-out loss before and after training, if there is validation data.",
    )
