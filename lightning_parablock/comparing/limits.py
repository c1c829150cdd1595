"""How long each method trains, so that all get the same samples, seconds or bytes, as options of ``fit``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.cohorts import hosted_clients, turns_of_a_round
from lightning_parablock.system.units import parse_bytes, parse_number, parse_s

Equal = Literal["samples", "seconds", "bytes"]

_PARSERS = {"samples": parse_number, "seconds": parse_s, "bytes": parse_bytes}
_NO_LIMIT = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "-1")
_STEPS_BETWEEN_POINTS = 100
"""Where the number of steps is not known before."""


@dataclass(frozen=True)
class Limit:
    """What all methods get the same amount of.

    Args:
        equal: Samples of a client, seconds of training, or bytes that a client sends (the mean over the clients).
        amount: How much; None is the configured number of steps or epochs, for samples alone.
        points: How often the held-out loss is measured while it trains; 0 for never.
    """

    equal: Equal
    amount: float | None
    points: int

    @classmethod
    def of(cls, equal: Equal, budget: str | None, points: int) -> Limit:
        """The limit of these options.

        Raises:
            ConfigurationError: the budget is missing or cannot be read, or points is negative.
        """
        if points < 0:
            raise ConfigurationError(f"points must be >= 0, got {points}")
        if budget is None and equal != "samples":
            example = "600 or 10min" if equal == "seconds" else "500MB"
            raise ConfigurationError(f"--equal {equal} needs --budget, such as {example}")
        return cls(equal, None if budget is None else _PARSERS[equal]("budget", budget), points)

    def words(self, configuration: Mapping[str, Any]) -> list[str]:
        """The options that set this limit, given a method's resolved configuration of ``fit``.

        Raises:
            ConfigurationError: nothing limits the training, its time does in place of its samples or bytes, or the
                budget is less than one step.
        """
        trainer = configuration["trainer"]
        if self.equal != "seconds" and trainer.get("max_time"):
            raise ConfigurationError(
                f"trainer.max_time ends a method before it has had as many {self.equal} as the others; leave it out, "
                "or say --equal seconds --budget 10min"
            )
        steps = self._steps(configuration)
        return [*self._end(trainer, steps), *self._points(trainer, steps)]

    def _end(self, trainer: Mapping[str, Any], steps: int | None) -> list[str]:
        if self.amount is None:
            if not is_limited(trainer):
                raise ConfigurationError("how long does each method train? give --trainer.max_steps or --budget")
            return [] if steps in (None, trainer["max_steps"]) else ["--trainer.max_steps", str(steps)]
        if self.equal == "samples":
            return ["--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
        if self.equal == "seconds":
            return ["--trainer.max_time", days_to_seconds(self.amount), *_NO_LIMIT]
        callback = "lightning_parablock.callbacks.ByteBudget"
        return ["--trainer.callbacks+", callback, "--trainer.callbacks.budget_bytes", str(int(self.amount)), *_NO_LIMIT]

    def _steps(self, configuration: Mapping[str, Any]) -> int | None:
        """Optimizer steps of a rank, where they are what ends its training."""
        if self.equal != "samples":
            return None
        if self.amount is None:
            configured = configuration["trainer"].get("max_steps", -1)
            return round(configured * rank_steps_a_step(configuration)) if configured > 0 else None
        each = step_samples(configuration)
        if each is None:
            raise ConfigurationError(
                "a budget of samples needs a data module with the option batch_size; give --trainer.max_steps instead"
            )
        if self.amount < each:
            raise ConfigurationError(f"a budget of {self.amount:g} samples is less than one step's {each}")
        return round(self.amount // each * rank_steps_a_step(configuration))

    def _points(self, trainer: Mapping[str, Any], steps: int | None) -> list[str]:
        """Validations while it trains, unless the configuration asks for some of its own."""
        own = trainer.get("val_check_interval") is not None or trainer.get("check_val_every_n_epoch") not in (None, 1)
        if own or not self.points:
            return []
        between = _STEPS_BETWEEN_POINTS if steps is None else math.ceil(steps / (self.points + 1))
        batches = between * trainer.get("accumulate_grad_batches", 1)
        return ["--trainer.val_check_interval", str(batches), "--trainer.check_val_every_n_epoch", "null"]


def is_limited(trainer: Mapping[str, Any]) -> bool:
    """Whether the trainer's options end a run by themselves."""
    return trainer.get("max_steps", -1) > 0 or (trainer.get("max_epochs") or -1) > 0


def step_samples(configuration: Mapping[str, Any]) -> int | None:
    """Samples of one optimizer step of a client; None where the data module does not tell its batch size."""
    data = (configuration.get("data") or {}).get("init_args") or {}
    batch_size = data.get("batch_size")
    accumulated = configuration["trainer"].get("accumulate_grad_batches") or 1
    return batch_size * accumulated if isinstance(batch_size, int) else None


def rank_steps_a_step(configuration: Mapping[str, Any]) -> float:
    """Optimizer steps of a rank for one of each client, the mean over the clients: 1 where each rank trains its own.

    Where m of n clients train in a round of T turns, a rank makes n T / m.
    """
    trainer = configuration["trainer"]
    strategy = trainer.get("strategy")
    options: Mapping[str, Any] = (strategy.get("init_args") or {}) if isinstance(strategy, Mapping) else {}
    devices = str(trainer.get("devices"))
    n_ranks = (int(devices) if devices.isdigit() else 1) * (trainer.get("num_nodes") or 1)
    n_clients, cohort = options.get("clients") or n_ranks, options.get("cohort")
    turns = turns_of_a_round(cohort, hosted_clients(n_clients, n_ranks))
    return n_clients * turns / (cohort or n_clients)


def days_to_seconds(duration_s: float) -> str:
    """DD:HH:MM:SS, as the Trainer's max_time wants it; whole seconds, at least one."""
    minutes, seconds = divmod(max(1, math.ceil(duration_s)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02d}:{hours:02d}:{minutes:02d}:{seconds:02d}"
