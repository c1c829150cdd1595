"""The commands of ``lightning-parablock``: names, one line of help each, parsers, and the functions that run them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning_parablock.system.importing import quick_imports

PROGRAM = "lightning-parablock"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: The first word of the command line; for a command of a command, both words.
        help: What it does, in one sentence.
        run: Module and function that run it on the words that follow it; empty for LightningCLI's commands.
        parser: Module and function that make its parser without importing Lightning; empty if that cannot be done.
        commands: Its own commands, where the next word must be one of them.
    """

    name: str
    help: str
    run: str = ""
    parser: str = ""
    commands: tuple[Command, ...] = ()

    @property
    def prog(self) -> str:
        """How usage lines name the command."""
        return f"{PROGRAM} {self.name}"

    @property
    def of_lightning(self) -> bool:
        """Whether LightningCLI runs it."""
        return not self.run and not self.commands

    def function(self, place: str) -> Any:
        """The function of :attr:`run` or :attr:`parser`; imports its module."""
        module, _, name = place.partition(":")
        with quick_imports():
            return getattr(import_module(f"lightning_parablock.{module}"), name)


_TABLE = (
    Command("fit", "Train, and measure the held-out loss before and after."),
    Command("validate", "Measure a model on the validation data."),
    Command("test", "Measure a model on the test data."),
    Command("predict", "Run a model's predict_step over the data."),
    Command(
        "compare",
        "Train by several methods from one configuration: one table and one picture of their held-out losses.",
        run="cli.commands.compare:run_compare",
        parser="cli.commands.compare:compare_parser",
    ),
    Command(
        "evaluate",
        "Measure the model in a checkpoint on test rows: loss, perplexity and, for GSM8K, exact match.",
        run="cli.commands.evaluate:run_evaluate",
    ),
    Command(
        "export",
        "Write the model in a checkpoint as a Hugging Face folder.",
        run="cli.commands.export:run_export",
        parser="cli.commands.export:export_parser",
    ),
    Command(
        "federation",
        "Make and change the file that says which sites train together; all of them sign every version of it.",
        commands=(
            Command(
                "federation create",
                "Put the cards of the sites into a new federation file.",
                run="cli.commands.federation_create:run_create",
                parser="cli.commands.federation_create:create_parser",
            ),
            Command(
                "federation collect",
                "Put the signatures in several copies of a federation file into the first one.",
                run="cli.commands.federation_change:run_collect",
                parser="cli.commands.federation_change:collect_parser",
            ),
            Command(
                "federation add",
                "Make the next version of a federation, with more sites.",
                run="cli.commands.federation_change:run_add",
                parser="cli.commands.federation_change:add_parser",
            ),
            Command(
                "federation revoke",
                "Make the next version of a federation, without some of its sites.",
                run="cli.commands.federation_change:run_revoke",
                parser="cli.commands.federation_change:revoke_parser",
            ),
        ),
    ),
    Command(
        "init",
        "Write the configuration that several sites share, and print the command that each of them runs.",
        run="cli.commands.init:run_init",
        parser="cli.commands.init:init_parser",
    ),
    Command(
        "lighthouse",
        "Say which sites of an elastic run are alive; the sites ask it all the time.",
        run="cli.commands.lighthouse:run_lighthouse",
        parser="cli.commands.lighthouse:lighthouse_parser",
    ),
    Command(
        "plan",
        "What a run would take: bytes, memory, seconds per round, and the settings to choose.",
        run="cli.commands.plan_command:run_plan",
        parser="cli.commands.plan_command:plan_parser",
    ),
    Command(
        "report",
        "Write one self-contained HTML page of a run: losses, timeline, hidden share, clients, settings.",
        run="cli.commands.report:run_report",
        parser="cli.commands.report:report_parser",
    ),
    Command(
        "site",
        "Make this site's keys, sign a federation file, and write the encrypted links to the other sites.",
        commands=(
            Command(
                "site init",
                "Make the keys of a site, and its public card, which goes to the person who makes the federation file.",
                run="cli.commands.site_init:run_site_init",
                parser="cli.commands.site_init:site_init_parser",
            ),
            Command(
                "site approve",
                "Show what a federation file says, compare its fingerprint, and sign it.",
                run="cli.commands.site_approve:run_approve",
                parser="cli.commands.site_approve:approve_parser",
            ),
            Command(
                "site join",
                "Check a federation file that all sites have signed, and write this site's links.",
                run="cli.commands.site_join:run_join",
                parser="cli.commands.site_join:join_parser",
            ),
        ),
    ),
)
COMMANDS = {command.name: command for command in _TABLE}
COMMANDS_OF = {command.name: {own.name.split()[1]: own for own in command.commands} for command in _TABLE}
"""The commands of a command, by their own word; empty for most."""
OF_LIGHTNING = tuple(command.name for command in _TABLE if command.of_lightning)
