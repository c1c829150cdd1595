"""Checks that take no time, made before a model is built, which may take minutes."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.strategies import Strategy

from lightning_parablock.cli.errors import one_line
from lightning_parablock.cli.spellings import check_strategy_name
from lightning_parablock.errors import ConfigurationError


def check_strategy(strategy: Any) -> None:
    """Check the strategy's settings.

    Args:
        strategy: The value of ``trainer.strategy``: a name, or a class path with options; anything else is Lightning's
            to judge.

    Raises:
        ConfigurationError: the name is not known, or an option is wrong.
    """
    if isinstance(strategy, str):
        check_strategy_name(strategy)
    elif isinstance(strategy, Namespace):
        for name in (
            "aggregation",
            "compression",
            "server_optimizer",
        ):  # by itself, or the cause is lost among those of a union
            chosen = strategy.get(f"init_args.{name}")
            if isinstance(chosen, Namespace):
                instantiate_class((), chosen.as_dict())
        checker = ArgumentParser(exit_on_error=False)
        checker.add_argument("--strategy", type=Strategy)
        try:
            checker.instantiate_classes(Namespace(strategy=strategy))
        except TypeError as error:
            raise ConfigurationError(f"the strategy cannot be built: {one_line(error)}") from error


def check_sources(data: Any, command: str) -> None:
    """Check the sources of a data module that can tell, without reading them, whether they can be read.

    Args:
        data: The value of ``data``: a class path with options, or None.
        command: The command of LightningCLI.

    Raises:
        DataError: a source cannot be read.
    """
    if not isinstance(data, Namespace):
        return
    module, _, name = data.class_path.rpartition(".")
    if hasattr(getattr(import_module(module), name, None), "check_sources"):
        checked: Any = instantiate_class((), data.as_dict())
        checked.check_sources(command)


def is_awaited(site: str | None, num_nodes: int) -> bool:
    """Whether processes that this one does not start wait for it."""
    launched = any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return launched or site is not None or num_nodes > 1
