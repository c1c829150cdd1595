"""The settings of a run: one frozen record, checked once, and the fingerprint that all ranks must share."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings.ports import PortRange

BlockOrder = Literal["sequential", "reverse", "shuffle", "random", "importance", "cyclic"]
CohortSampling = Literal["uniform", "size", "rotation"]
InFlightValue = Literal["local", "anchor"]
Topology = Literal["sharded", "star"]
Unmatched = Literal["error", "freeze"]
Weighting = Literal["uniform", "samples"]
Decay = Literal["constant", "linear", "cosine"]
BlockOptimizerState = Literal["reset", "offload", "keep"]
MissingClientState = Literal["error", "fresh"]
UnevenClients = Literal["go_on", "shorten"]
Buffers = Literal["local", "average"]
NonfiniteDelta = Literal["stop", "skip"]
BlocksSpec = str | int | Sequence[str]
Availability = tuple[tuple[int, ...], ...]
"""For each round the clients that can be reached; after its last entry a trace begins anew. Empty: all, always."""

AUTO: Literal["auto"] = "auto"
MAX_AUTO_STEPS = 256
"""The most local steps that ``local_steps="auto"`` takes."""


@dataclass(frozen=True)
class ServerOptimizer:
    """What the server does with the mean delta G of a block (METHOD: "Server"). Base of the choices below.

    Args:
        lr: Server learning rate, dimensionless.
        warmup_rounds: The learning rate grows in equal steps over the first so many rounds.
        decay: How it falls after them: "constant", "linear" or "cosine".
        decay_rounds: Round from which on it stays at ``decay_to`` times ``lr``, counted from the run's first one.
        decay_to: Share of ``lr`` that is left at the end, in [0, 1].
    """

    lr: float = 1.0
    warmup_rounds: int = field(default=0, kw_only=True)
    decay: Decay = field(default="constant", kw_only=True)
    decay_rounds: int = field(default=0, kw_only=True)
    decay_to: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"server_optimizer lr must be > 0, got {self.lr}")
        _check_choice("server_optimizer decay", self.decay, get_args(Decay))
        _check_int("server_optimizer warmup_rounds", self.warmup_rounds, at_least=0, unit="rounds")
        _check_int("server_optimizer decay_rounds", self.decay_rounds, at_least=0, unit="rounds")
        _require(0 <= self.decay_to <= 1, f"server_optimizer decay_to must be in [0, 1], got {self.decay_to}")
        if self.decay == "constant":
            _require(
                self.decay_rounds == 0 and self.decay_to == 0,
                "server_optimizer decay_rounds and decay_to mean nothing with decay='constant'; choose 'linear' or "
                "'cosine', or leave them out",
            )
        else:
            _require(
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
    """Nesterov momentum, one velocity a block: v = momentum v + G; W = W + lr (G + momentum v) (arXiv 2311.08105).

    Args:
        momentum: Decay of the velocity a visit of the block, in [0, 1).
    """

    lr: float = 0.7
    momentum: float = 0.9

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.momentum < 1, f"server_optimizer momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True)
class ServerAdam(ServerOptimizer):
    """Adaptive steps, one state a block: W = W + lr m / (sqrt(v) + tau) (FedAdam, arXiv 2003.00295, algorithm 2).

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
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"server_optimizer betas must be two numbers in [0, 1), got {self.betas}",
        )
        _require(self.tau > 0, f"server_optimizer tau must be > 0, got {self.tau}")


@dataclass(frozen=True)
class ServerYogi(ServerAdam):
    """ServerAdam whose v moves by no more than (1 - beta2) G^2: v = v - (1 - beta2) G^2 sign(v - G^2)."""


OWN_SETTINGS = ("upload_bps", "own_local_steps", "own_local_s", "ports")
"""Settings that may differ from rank to rank: a site's link, speed and firewall."""

SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "sgd": ServerSGD,
    "nesterov": ServerNesterov,
    "adam": ServerAdam,
    "yogi": ServerYogi,
}

RECORD_SCALARS = 1024
"""Blocks are cut into shards and chunks at multiples of so many scalars; a compression's groups divide it."""


@dataclass(frozen=True)
class Compression:
    """What deltas and commits are turned into on the wire (METHOD: "Around it"). Base of the choices below."""

    @property
    def is_lossy(self) -> bool:
        """Whether what arrives differs from what was sent, so that error feedback keeps the difference."""
        return True


@dataclass(frozen=True)
class NoCompression(Compression):
    """The float32 values themselves."""

    @property
    @override
    def is_lossy(self) -> bool:
        return False


@dataclass(frozen=True)
class BF16(Compression):
    """Each value rounded to bfloat16, half to even: 2 times fewer bytes."""


@dataclass(frozen=True)
class Int8(Compression):
    """A byte a value, in steps of the group's largest magnitude / 127: 3.97 times fewer bytes with groups of 256.

    Args:
        group: Scalars that share a step, a divisor of 1024 from 4 on. The step travels as bfloat16.
    """

    group: int = 256

    def __post_init__(self) -> None:
        _check_group(self.group)


@dataclass(frozen=True)
class Int4(Compression):
    """Half a byte a value, in steps of the group's largest magnitude / 7: 7.5 times fewer bytes with groups of 64.

    Args:
        group: Scalars that share a step, a divisor of 1024 from 4 on. The step travels as bfloat16.
    """

    group: int = 64

    def __post_init__(self) -> None:
        _check_group(self.group)


@dataclass(frozen=True)
class TopK(Compression):
    """Of each 1024 scalars the largest magnitudes alone, 4 bytes each: 16 times fewer bytes where 1/16 is kept.

    Args:
        keep: Share of the scalars that is sent, in (0, 1]; at least one of each 1024.
    """

    keep: float = 1 / 16

    def __post_init__(self) -> None:
        _require(0 < self.keep <= 1, f"compression keep must be in (0, 1], got {self.keep}")


COMPRESSIONS: dict[str, type[Compression]] = {
    "none": NoCompression,
    "bf16": BF16,
    "int8": Int8,
    "int4": Int4,
    "topk": TopK,
}


@dataclass(frozen=True)
class Settings:
    """All settings of the method and its transport, resolved: no ``None`` is left but ``seed`` before set-up.

    The fields are documented at :class:`lightning_parablock.ParaBlockStrategy`, which is where users give them.

    Raises:
        ConfigurationError: a value is out of its range or of the wrong kind.
    """

    local_steps: int = 16
    delay_steps: int = 16
    blocks: str | int | tuple[str, ...] = "layers"
    unmatched: Unmatched = "error"
    block_order: BlockOrder = "shuffle"
    visit_more: tuple[tuple[str, float], ...] = ()
    clients: int | None = None
    cohort: int | None = None
    cohort_sampling: CohortSampling = "uniform"
    availability: Availability = ()
    max_rounds: int | None = None
    in_flight_value: InFlightValue = "local"
    server_optimizer: ServerOptimizer = field(default_factory=ServerSGD)
    weighting: Weighting = "uniform"
    topology: Topology = "sharded"
    compression: Compression = field(default_factory=NoCompression)
    block_optimizer_state: BlockOptimizerState = "reset"
    local_warmup_steps: int = 0
    proximal_mu: float = 0.0
    own_local_steps: int | None = None
    own_local_s: float | None = None
    buffers: Buffers = "local"
    nonfinite_delta: NonfiniteDelta = "stop"
    exchange_timeout_s: float = 300.0
    straggler_timeout_s: float = 3600.0
    heartbeat_s: float = 1.0
    chunk_bytes: int = 1 << 20
    upload_bps: float | None = None
    ports: PortRange | None = None
    uneven_clients: UnevenClients = "go_on"
    missing_client_state: MissingClientState = "error"
    seed: int = 0
    pending: tuple[str, ...] = ()
    """Names of the settings on which the clients agree in round 0; until then they have an upper limit's value."""

    def __post_init__(self) -> None:
        _check_int("local_steps", self.local_steps, at_least=1, unit="optimizer steps a round, or 'auto'")
        _check_int("delay_steps", self.delay_steps, at_least=0, unit="optimizer steps; 0 is blocking")
        _require(
            not self.pending or self.delay_steps > 0,
            "local_steps='auto' finds how many local steps hide an exchange, and with delay_steps=0 nothing is hidden; "
            "give local_steps a number",
        )
        _check_int("local_warmup_steps", self.local_warmup_steps, at_least=0, unit="optimizer steps of each round")
        _require(
            isinstance(cast(Any, self.proximal_mu), (int, float)) and 0 <= self.proximal_mu < float("inf"),
            f"proximal_mu must be a finite number >= 0, got {self.proximal_mu!r}",
        )
        for name, unit in (("clients", "in all"), ("cohort", "clients a round"), ("max_rounds", "rounds of the run")):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), at_least=1, unit=unit)
        self._check_cohort()
        self._check_visits()
        _check_int("seed", self.seed, at_least=0, unit="any non-negative whole number")
        _check_int("chunk_bytes", self.chunk_bytes, at_least=4096, unit="bytes a message")
        _require(self.chunk_bytes % 4096 == 0, f"chunk_bytes must be a multiple of 4096, got {self.chunk_bytes}")
        for name in ("exchange_timeout_s", "straggler_timeout_s", "heartbeat_s"):
            value = getattr(self, name)
            _require(
                isinstance(value, (int, float)) and 0 < value < float("inf"),
                f"{name} must be a finite number of seconds > 0, got {value!r}",
            )
        if self.own_local_steps is not None:
            _check_int("own_local_steps", self.own_local_steps, at_least=1, unit="optimizer steps of each round")
        own_s = cast(Any, self.own_local_s)
        _require(
            own_s is None or (isinstance(own_s, (int, float)) and 0 < own_s < float("inf")),
            f"own_local_s must be a finite number of seconds > 0, or None for no limit, got {own_s!r}",
        )
        cap = cast(Any, self.upload_bps)
        _require(
            cap is None or (isinstance(cap, (int, float)) and 0 < cap < float("inf")),
            f"upload_bps must be a finite number of bits per second > 0, or None for no cap, got {cap!r}",
        )
        _require(
            self.exchange_timeout_s >= 2 * self.heartbeat_s,
            f"exchange_timeout_s ({self.exchange_timeout_s}) must be at least twice heartbeat_s ({self.heartbeat_s}), "
            "else a healthy client looks silent",
        )
        _check_choice("unmatched", self.unmatched, get_args(Unmatched))
        _check_choice("block_order", self.block_order, get_args(BlockOrder))
        _check_choice("in_flight_value", self.in_flight_value, get_args(InFlightValue))
        _check_choice("weighting", self.weighting, get_args(Weighting))
        _check_choice("topology", self.topology, get_args(Topology))
        _check_choice("uneven_clients", self.uneven_clients, get_args(UnevenClients))
        _check_choice("missing_client_state", self.missing_client_state, get_args(MissingClientState))
        _check_choice("block_optimizer_state", self.block_optimizer_state, get_args(BlockOptimizerState))
        _check_choice("buffers", self.buffers, get_args(Buffers))
        _check_choice("nonfinite_delta", self.nonfinite_delta, get_args(NonfiniteDelta))
        _check_blocks(self.blocks)

    @property
    def draws_cohorts(self) -> bool:
        """Whether there may be rounds in which not all clients train."""
        return self.cohort is not None or bool(self.availability)

    @property
    def takes_turns(self) -> bool:
        """Whether the clients are counted apart from the ranks, or do not all train in every round."""
        return self.clients is not None or self.draws_cohorts

    def _check_cohort(self) -> None:
        _check_choice("cohort_sampling", self.cohort_sampling, get_args(CohortSampling))
        _require(
            self.cohort is not None or self.cohort_sampling == "uniform",
            f"cohort_sampling={self.cohort_sampling!r} without cohort, the number of clients that train in a round: "
            "without it all of them do",
        )
        _require(
            self.cohort is None or self.clients is None or self.cohort <= self.clients,
            f"cohort={self.cohort} clients a round, but the run has clients={self.clients}",
        )
        _require(
            self.buffers == "local" or not self.takes_turns,
            "buffers='average' needs one client a rank in every round: where clients take turns each keeps its own; "
            "leave buffers at 'local'",
        )
        _require(
            not self.pending or self.block_order != "cyclic",
            "local_steps='auto' needs every client to train the same block in a round, and with block_order='cyclic' "
            "they do not; give local_steps a number",
        )
        _require(
            not self.pending or not self.takes_turns,
            "local_steps='auto' needs every rank to train one client a round; with clients, cohort or availability "
            "give it a number",
        )

    def _check_visits(self) -> None:
        _require(
            not self.visit_more or self.block_order in ("random", "importance"),
            f"visit_more needs block_order 'random' or 'importance', where rounds are drawn, got {self.block_order!r}",
        )
        for pattern, factor in self.visit_more:
            _check_pattern("visit_more", pattern)
            _require(
                isinstance(cast(Any, factor), (int, float)) and 0 < factor < float("inf"),
                f"visit_more: the factor of {pattern!r} must be a finite number > 0, got {factor!r}",
            )

    @property
    def delay_rounds_and_steps(self) -> tuple[int, int]:
        """``delay_steps`` as (q, r) with delay_steps = q local_steps + r and 0 <= r < local_steps."""
        return divmod(self.delay_steps, self.local_steps)

    def agreed(self, local_steps: int) -> Settings:
        """These settings once the clients have agreed on K."""
        return dataclasses.replace(self, pending=(), **dict.fromkeys(self.pending, local_steps))

    def fingerprint(self) -> dict[str, str]:
        """One printable value a setting that every rank must share: all but those of a site's own."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("pending", *OWN_SETTINGS)]
        return {name: repr(AUTO if name in self.pending else getattr(self, name)) for name in names}


def resolve_steps(local_steps: int | Literal["auto"], delay_steps: int | None) -> dict[str, Any]:
    """The two step counts as fields of :class:`Settings`: None is local_steps, and "auto" is agreed on later."""
    steps = MAX_AUTO_STEPS if local_steps == AUTO else local_steps
    pending = ("local_steps", "delay_steps") if delay_steps is None else ("local_steps",)
    return {
        "local_steps": steps,
        "delay_steps": steps if delay_steps is None else delay_steps,
        "pending": pending if local_steps == AUTO else (),
    }


def resolve_server_optimizer(value: str | ServerOptimizer) -> ServerOptimizer:
    """Turn a name ("sgd", "nesterov", "adam", "yogi") or an object with its settings into the object."""
    if isinstance(value, ServerOptimizer):
        return value
    _check_choice("server_optimizer", value, tuple(SERVER_OPTIMIZERS))
    return SERVER_OPTIMIZERS[value]()


def resolve_compression(value: str | Compression) -> Compression:
    """Turn a name ("none", "bf16", "int8", "int4", "topk") or an object with its settings into the object."""
    if isinstance(value, Compression):
        return value
    _check_choice("compression", value, tuple(COMPRESSIONS))
    return COMPRESSIONS[value]()


def option_word(value: Compression | ServerOptimizer) -> str:
    """The word that stands for the object, with its settings, as an option of the strategy."""
    words: dict[type, str] = {kind: word for word, kind in (*COMPRESSIONS.items(), *SERVER_OPTIMIZERS.items())}
    return words[type(value)]


def resolve_blocks(value: BlocksSpec) -> str | int | tuple[str, ...]:
    """Normalise the ``blocks`` option; a list of patterns becomes a tuple so that settings stay hashable."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def nearest(word: str, choices: Sequence[str]) -> str:
    """The end of an error message that names the choices and, where one is close, the likely intention."""
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"choose from {', '.join(map(repr, choices))}{hint}"


def _check_blocks(blocks: Any) -> None:
    if isinstance(blocks, str):
        _require(
            blocks == "layers",
            f"blocks={blocks!r} is not known; choose 'layers', a whole number of blocks, or a list of patterns"
            + (f" such as ['{blocks}']" if blocks else ""),
        )
        return
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        _require(blocks >= 1, f"blocks must be at least 1, got {blocks}")
        return
    _require(
        isinstance(blocks, tuple) and len(blocks) > 0,
        f"blocks must be 'layers', a whole number of blocks, or a list of at least one pattern, got {blocks!r}",
    )
    for pattern in cast(tuple[Any, ...], blocks):
        _check_pattern("blocks", pattern)


def _check_pattern(name: str, pattern: Any) -> None:
    _require(isinstance(pattern, str), f"each pattern of {name} must be a string, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{name}: {pattern!r} is not a regular expression: {error}") from error


def _check_int(name: str, value: Any, *, at_least: int, unit: str) -> None:
    _require(
        isinstance(value, int) and not isinstance(value, bool) and value >= at_least,
        f"{name} must be a whole number >= {at_least} ({unit}), got {value!r}",
    )


def _check_group(group: Any) -> None:
    _check_int("compression group", group, at_least=4, unit="scalars that share a step")
    if RECORD_SCALARS % group:
        nearest_group = min(1 << group.bit_length() - 1, RECORD_SCALARS)
        raise ConfigurationError(f"compression group must divide {RECORD_SCALARS}, got {group}; try {nearest_group}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    _require(value in choices, f"{name}={value!r} is not known; {nearest(str(value), choices)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)
