"""The settings of a run: one frozen record, checked once, and the fingerprint that all ranks must share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from lightning_parablock.checks import check_choice, check_int, check_pattern, require
from lightning_parablock.codecs.compression import COMPRESSIONS, Compression, NoCompression
from lightning_parablock.server.optimizers import SERVER_OPTIMIZERS, ServerOptimizer, ServerSGD
from lightning_parablock.settings.ports import PortRange

BlockOrder = Literal["sequential", "reverse", "shuffle", "random", "importance", "cyclic"]
CohortSampling = Literal["uniform", "size", "rotation"]
InFlightValue = Literal["local", "anchor"]
Topology = Literal["sharded", "star"]
Unmatched = Literal["error", "freeze"]
Weighting = Literal["uniform", "samples"]
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


OWN_SETTINGS = ("upload_bps", "own_local_steps", "own_local_s", "ports")
"""Settings that may differ from rank to rank: a site's link, speed and firewall."""


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
        check_int("local_steps", self.local_steps, at_least=1, unit="optimizer steps a round, or 'auto'")
        check_int("delay_steps", self.delay_steps, at_least=0, unit="optimizer steps; 0 is blocking")
        require(
            not self.pending or self.delay_steps > 0,
            "local_steps='auto' finds how many local steps hide an exchange, and with delay_steps=0 nothing is hidden; "
            "give local_steps a number",
        )
        check_int("local_warmup_steps", self.local_warmup_steps, at_least=0, unit="optimizer steps of each round")
        require(
            isinstance(cast(Any, self.proximal_mu), (int, float)) and 0 <= self.proximal_mu < float("inf"),
            f"proximal_mu must be a finite number >= 0, got {self.proximal_mu!r}",
        )
        for name, unit in (("clients", "in all"), ("cohort", "clients a round"), ("max_rounds", "rounds of the run")):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), at_least=1, unit=unit)
        self._check_cohort()
        self._check_visits()
        check_int("seed", self.seed, at_least=0, unit="any non-negative whole number")
        check_int("chunk_bytes", self.chunk_bytes, at_least=4096, unit="bytes a message")
        require(self.chunk_bytes % 4096 == 0, f"chunk_bytes must be a multiple of 4096, got {self.chunk_bytes}")
        for name in ("exchange_timeout_s", "straggler_timeout_s", "heartbeat_s"):
            value = getattr(self, name)
            require(
                isinstance(value, (int, float)) and 0 < value < float("inf"),
                f"{name} must be a finite number of seconds > 0, got {value!r}",
            )
        if self.own_local_steps is not None:
            check_int("own_local_steps", self.own_local_steps, at_least=1, unit="optimizer steps of each round")
        own_s = cast(Any, self.own_local_s)
        require(
            own_s is None or (isinstance(own_s, (int, float)) and 0 < own_s < float("inf")),
            f"own_local_s must be a finite number of seconds > 0, or None for no limit, got {own_s!r}",
        )
        cap = cast(Any, self.upload_bps)
        require(
            cap is None or (isinstance(cap, (int, float)) and 0 < cap < float("inf")),
            f"upload_bps must be a finite number of bits per second > 0, or None for no cap, got {cap!r}",
        )
        require(
            self.exchange_timeout_s >= 2 * self.heartbeat_s,
            f"exchange_timeout_s ({self.exchange_timeout_s}) must be at least twice heartbeat_s ({self.heartbeat_s}), "
            "else a healthy client looks silent",
        )
        check_choice("unmatched", self.unmatched, get_args(Unmatched))
        check_choice("block_order", self.block_order, get_args(BlockOrder))
        check_choice("in_flight_value", self.in_flight_value, get_args(InFlightValue))
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_choice("topology", self.topology, get_args(Topology))
        check_choice("uneven_clients", self.uneven_clients, get_args(UnevenClients))
        check_choice("missing_client_state", self.missing_client_state, get_args(MissingClientState))
        check_choice("block_optimizer_state", self.block_optimizer_state, get_args(BlockOptimizerState))
        check_choice("buffers", self.buffers, get_args(Buffers))
        check_choice("nonfinite_delta", self.nonfinite_delta, get_args(NonfiniteDelta))
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
        check_choice("cohort_sampling", self.cohort_sampling, get_args(CohortSampling))
        require(
            self.cohort is not None or self.cohort_sampling == "uniform",
            f"cohort_sampling={self.cohort_sampling!r} without cohort, the number of clients that train in a round: "
            "without it all of them do",
        )
        require(
            self.cohort is None or self.clients is None or self.cohort <= self.clients,
            f"cohort={self.cohort} clients a round, but the run has clients={self.clients}",
        )
        require(
            self.buffers == "local" or not self.takes_turns,
            "buffers='average' needs one client a rank in every round: where clients take turns each keeps its own; "
            "leave buffers at 'local'",
        )
        require(
            not self.pending or self.block_order != "cyclic",
            "local_steps='auto' needs every client to train the same block in a round, and with block_order='cyclic' "
            "they do not; give local_steps a number",
        )
        require(
            not self.pending or not self.takes_turns,
            "local_steps='auto' needs every rank to train one client a round; with clients, cohort or availability "
            "give it a number",
        )

    def _check_visits(self) -> None:
        require(
            not self.visit_more or self.block_order in ("random", "importance"),
            f"visit_more needs block_order 'random' or 'importance', where rounds are drawn, got {self.block_order!r}",
        )
        for pattern, factor in self.visit_more:
            check_pattern("visit_more", pattern)
            require(
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


def option_word(value: Compression | ServerOptimizer) -> str:
    """The word that stands for the object, with its settings, as an option of the strategy."""
    words: dict[type, str] = {kind: word for word, kind in (*COMPRESSIONS.items(), *SERVER_OPTIMIZERS.items())}
    return words[type(value)]


def resolve_blocks(value: BlocksSpec) -> str | int | tuple[str, ...]:
    """Normalise the ``blocks`` option; a list of patterns becomes a tuple so that settings stay hashable."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _check_blocks(blocks: Any) -> None:
    if isinstance(blocks, str):
        require(
            blocks == "layers",
            f"blocks={blocks!r} is not known; choose 'layers', a whole number of blocks, or a list of patterns"
            + (f" such as ['{blocks}']" if blocks else ""),
        )
        return
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        require(blocks >= 1, f"blocks must be at least 1, got {blocks}")
        return
    require(
        isinstance(blocks, tuple) and len(blocks) > 0,
        f"blocks must be 'layers', a whole number of blocks, or a list of at least one pattern, got {blocks!r}",
    )
    for pattern in cast(tuple[Any, ...], blocks):
        check_pattern("blocks", pattern)
