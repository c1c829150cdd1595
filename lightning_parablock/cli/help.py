"""``fit --help``: the options of the strategy, the model and the data before those of Lightning's Trainer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import ArgumentParser

from lightning_parablock.cli.table import COMMANDS

_HELP = ("-h", "--help")
_OF_TRAINER = {"accelerator", "parallel_devices", "cluster_environment", "checkpoint_io", "precision_plugin"}
"""Of the strategy; set by the Trainer or by other options of it."""

_HEADINGS = {
    "options:": "the run:",
    "Customize every aspect of training via flags:": "Lightning's Trainer, options --trainer.NAME:",
    "<class 'lightning.pytorch.core.module.LightningModule'>:": "another model:",
}
"""Headings of LightningCLI that do not describe the options below them."""

_SECTIONS = {"strategy": "trainer.strategy", "model": "model", "data": "data"}


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the words ask for the help of a whole command rather than of one class."""
    return any(word in _HELP for word in words)


def command_help(name: str, lightnings: str, words: Sequence[str], defaults: Mapping[str, Any]) -> str:
    """The help of a command of LightningCLI.

    Args:
        name: The command.
        lightnings: The help text of LightningCLI's own parser.
        words: The command line, which may name other classes than the defaults.
        defaults: The default classes, by dotted option.
    """
    sections = [_section(short, _chosen(short, words) or _default(defaults, long)) for short, long in _SECTIONS.items()]
    options = lightnings.partition("\n\n")[2].partition("\n\n")[2]
    for theirs, ours in _HEADINGS.items():
        options = options.replace(theirs, ours)
    return "\n\n".join(
        (
            f"usage: {COMMANDS[name].prog} [--config FILE ...] [options]",
            COMMANDS[name].help,
            "FILE is a YAML file, or the name of a packaged configuration such as quickstart or methods/fedbcd; later "
            "files and options\nare laid over earlier ones. --site NAME is short for --strategy.site NAME.",
            *(section for section in sections if section),
            options,
        )
    )


def _section(option: str, class_path: str) -> str:
    """The options of a class under a heading; empty where the class cannot be imported."""
    cls = _imported(class_path)
    if cls is None:
        return ""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    skipped = _OF_TRAINER if option == "strategy" else set[str]()
    parser.add_class_arguments(cls, option, fail_untyped=False, skip=set(skipped))
    _, _, listed = parser.format_help().partition(f"  --{option} CONFIG")
    lines = listed.splitlines()[1:]
    return "\n".join((f"{option} ({class_path}), options --{option}.NAME:", *lines))


def _chosen(option: str, words: Sequence[str]) -> str | None:
    """The class that the command line names."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in (f"--{option}", f"--trainer.{option}"):
            value = value if equals else following
            return value if _imported(value) is not None else None
    return None


def _default(defaults: Mapping[str, Any], option: str) -> str:
    return str(defaults[option]["class_path"])


def _imported(class_path: str) -> type | None:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None
