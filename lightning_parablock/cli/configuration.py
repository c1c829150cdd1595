"""Reads a command line into the configuration that it resolves to, without building anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from lightning_parablock.cli.app import ParaBlockCLI
from lightning_parablock.runs.run import Run


class _Configuration(ParaBlockCLI):
    """The command line read and checked, and nothing built."""

    @override
    def set_seed(self) -> None:
        pass

    @override
    def instantiate_classes(self) -> None:
        self.dump_configuration()

    @override
    def run_command(self, subcommand: str) -> None:
        pass


def read_configuration(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a command line, as its run's manifest would have it.

    Raises:
        ConfigurationError: a setting of the strategy is wrong.
        SystemExit: a word of the command line is wrong; the parser has said so.
    """
    return _Configuration(Run(), args).config_dump
