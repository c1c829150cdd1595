"""The choices of the option ``server_optimizer``: what the server does with the mean delta. They do not need torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from typing_extensions import override

from lightning_parablock.checks import check_choice, check_int, chosen, require

Decay = Literal["constant", "linear", "cosine"]
ServerOptimizerName = Literal["sgd", "nesterov", "adam", "yogi"]


@dataclass(frozen=True)
class ServerOptimizer:
    """What the server does with the mean delta G of a block (docs/method.md, "The server"). Base of the choices below.

    Args:
        lr: Server learning rate, dimensionless.
        warmup_rounds: Number of rounds at the start over which the learning rate rises linearly to ``lr``.
        decay: Shape of the schedule after the warm-up: "constant", "linear" or "cosine".
        decay_rounds: Round, counted from the start of the run, at which the schedule ends; from there on the learning
            rate is ``decay_to`` times ``lr``.
        decay_to: Fraction of ``lr`` that remains at the end, in [0, 1].
    """

    lr: float = 1.0
    warmup_rounds: int = field(default=0, kw_only=True)
    decay: Decay = field(default="constant", kw_only=True)
    decay_rounds: int = field(default=0, kw_only=True)
    decay_to: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        require(self.lr > 0, f"server_optimizer lr must be > 0, got {self.lr}")
        check_choice("server_optimizer decay", self.decay, get_args(Decay))
        check_int("server_optimizer warmup_rounds", self.warmup_rounds, at_least=0, unit="rounds")
        check_int("server_optimizer decay_rounds", self.decay_rounds, at_least=0, unit="rounds")
        require(0 <= self.decay_to <= 1, f"server_optimizer decay_to must be in [0, 1], got {self.decay_to}")
        if self.decay == "constant":
            require(
                self.decay_rounds == 0 and self.decay_to == 0,
                "server_optimizer decay_rounds and decay_to mean nothing with decay='constant'; choose 'linear' or "
                "'cosine', or leave them out",
            )
        else:
            require(
                self.decay_rounds > self.warmup_rounds,
                f"server_optimizer decay={self.decay!r} needs decay_rounds > warmup_rounds ({self.warmup_rounds}), got "
                f"{self.decay_rounds}",
            )

    def lr_of(self, round_index: int) -> float:
        """The learning rate with which the commit of a round moves W."""
        return self.lr * self._share_of(round_index)

    def _share_of(self, round_index: int) -> float:
        if round_index < self.warmup_rounds:
            return (round_index + 1) / self.warmup_rounds
        if self.decay == "constant":
            return 1.0
        passed = min(1.0, (round_index - self.warmup_rounds) / (self.decay_rounds - self.warmup_rounds))
        left = 1 - passed if self.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2
        return self.decay_to + (1 - self.decay_to) * left


@dataclass(frozen=True)
class ServerSGD(ServerOptimizer):
    """Federated averaging: W = W + lr G, lr 1 (arXiv 1602.05629)."""


@dataclass(frozen=True)
class ServerNesterov(ServerOptimizer):
    """Nesterov momentum, one velocity per block: v = momentum v + G; W = W + lr (G + momentum v) (arXiv 2311.08105).

    Args:
        momentum: Factor by which the velocity of a block decays per round that trains the block, in [0, 1).
    """

    lr: float = 0.7
    momentum: float = 0.9

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, f"server_optimizer momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True)
class ServerAdam(ServerOptimizer):
    """Adaptive steps, one state per block: W = W + lr m / (sqrt(v) + tau) (FedAdam, arXiv 2003.00295, algorithm 2).

    m = beta1 m + (1 - beta1) G; v = beta2 v + (1 - beta2) G^2; m starts at 0, v at tau^2, without bias correction.

    Args:
        betas: beta1 and beta2, each in [0, 1).
        tau: Degree of adaptivity, in the units of G: where sqrt(v) is far below it, steps are those of momentum.
    """

    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"server_optimizer betas must be two numbers in [0, 1), got {self.betas}",
        )
        require(self.tau > 0, f"server_optimizer tau must be > 0, got {self.tau}")


@dataclass(frozen=True)
class ServerYogi(ServerAdam):
    """ServerAdam whose v moves by no more than (1 - beta2) G^2: v = v - (1 - beta2) G^2 sign(v - G^2)."""


SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "sgd": ServerSGD,
    "nesterov": ServerNesterov,
    "adam": ServerAdam,
    "yogi": ServerYogi,
}


def resolve_server_optimizer(value: ServerOptimizerName | ServerOptimizer) -> ServerOptimizer:
    """Turn a name ("sgd", "nesterov", "adam", "yogi") or an object with its own settings into the object."""
    return chosen("server_optimizer", value, ServerOptimizer, SERVER_OPTIMIZERS)
