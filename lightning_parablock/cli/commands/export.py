"""``lightning-parablock export``: the model in a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS

_COMMAND = COMMANDS["export"]


def export_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Needs a checkpoint that CausalLM saved; for other modules, and at the end of a "
        "run, there is the callback lightning_parablock.callbacks.HuggingFaceExport.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="The checkpoint of a CausalLM.")
    parser.add_argument("--output", type=str, required=True, help="The folder to create.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the folder if it exists.")
    parser.add_argument(
        "--no-tokenizer",
        action="store_true",
        help="Leave the tokenizer out; without this it is read from the model that the run was started from.",
    )
    return parser


def run_export(args: Sequence[str]) -> None:
    """Run ``export`` on the words that follow it and print the folder's name.

    Raises:
        ConfigurationError: it cannot be done.
    """
    options = export_parser().parse_args(list(args))
    from lightning_parablock.models.export import export_checkpoint  # late: transformers' models take seconds

    output = Path(options.output).expanduser()
    ckpt_path = Path(options.ckpt_path).expanduser()
    export_checkpoint(ckpt_path, output, overwrite=options.overwrite, tokenizer=not options.no_tokenizer)
    print(f"model folder: {output}")
