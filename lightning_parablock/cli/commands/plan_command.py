"""``lightning-parablock plan``: its parser, and its run, which imports torch after the options have been checked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lightning_parablock.cli.commands.plan_options import PlanOptions
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.system.importing import quick_imports

_COMMAND = COMMANDS["plan"]


def run_plan(args: Sequence[str]) -> None:
    """Run ``plan`` on the words that follow it.

    Raises:
        ConfigurationError: the options contradict each other, or the model cannot be found or cut as asked.
        PeerError: the probe lost a process.
    """
    options = PlanOptions(**plan_parser().parse_args(_with_values(args)).as_dict())
    with quick_imports():
        from lightning_parablock.cli.commands.plan import plan

    plan(options)


def plan_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Reads the model's configuration alone: no weights, no data; nothing is trained.",
    )
    parser.add_class_arguments(PlanOptions)
    return parser


def _with_values(args: Sequence[str]) -> list[str]:
    """``--probe`` alone means ``--probe true``: the parser, which reads it from the options' types, wants a value."""
    return [
        f"{word}=true" if word == "--probe" and following[:2] == "--" else word
        for word, following in pairwise([*args, "--"])
    ]
