"""LightningCLI with public names for its private hooks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI
from typing_extensions import override


class CommandLine(LightningCLI):
    """LightningCLI, whose steps a subclass may replace under public names.

    Without these hooks a run folder could not be opened between reading the configuration and the training, a dry run
    could not stop before it, and a configuration could not be read without building what it names.
    """

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option of the chosen subcommand, by dotted name."""
        return self._get(self.config, name, default)

    def built(self, name: str) -> Any:
        """What an option of the chosen subcommand has become, once classes are instantiated."""
        return self._get(self.config_init, name)

    def take_checkpoint_options(self) -> None:
        """Let hyperparameters that a checkpoint holds become the model's options."""
        super()._parse_ckpt_path()

    def set_seed(self) -> None:
        """Seed the process as the option says."""
        super()._set_seed()

    def run_command(self, subcommand: str) -> None:
        """Do what the subcommand says; everything is built."""
        super()._run_subcommand(subcommand)

    def dump_configuration(self) -> None:
        """Take the resolved configuration into ``config_dump``."""
        self._dump_config()

    @override
    def _parse_ckpt_path(self) -> None:
        self.take_checkpoint_options()

    @override
    def _set_seed(self) -> None:
        self.set_seed()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        self.run_command(subcommand)
