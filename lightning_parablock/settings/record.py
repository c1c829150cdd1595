"""The settings of a run: one frozen record, checked once, and the fingerprint that all ranks must share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from lightning_parablock.checks import require
from lightning_parablock.codecs.compression import COMPRESSIONS, Compression, NoCompression
from lightning_parablock.options import options_of, record
from lightning_parablock.server.aggregations import AGGREGATIONS, Aggregation
from lightning_parablock.server.optimizers import SERVER_OPTIMIZERS, ServerOptimizer
from lightning_parablock.settings.blocks import AUTO, BlockOptions
from lightning_parablock.settings.clients import ClientOptions
from lightning_parablock.settings.delay import Delay
from lightning_parablock.settings.elastic import ElasticOptions
from lightning_parablock.settings.exchange import ExchangeOptions
from lightning_parablock.settings.fit import FitOptions
from lightning_parablock.settings.links import LinkOptions
from lightning_parablock.settings.local import LocalOptions
from lightning_parablock.settings.low_rank import refuse_with_low_rank
from lightning_parablock.settings.private import PrivateOptions
from lightning_parablock.settings.rounds import RoundOptions, resolve_steps
from lightning_parablock.settings.secure import refuse_with_secure


# The fields of a dataclass begin with those of its last base: signatures, help and fingerprint keep that order.
@record
class MethodOptions(
    PrivateOptions,
    ElasticOptions,
    FitOptions,
    LinkOptions,
    LocalOptions,
    ExchangeOptions,
    ClientOptions,
    BlockOptions,
    RoundOptions,
):
    """Every option of the method and its transport."""


@record
class Settings(MethodOptions):
    """The settings of a run: the options, converted to the values that the rest of the package works with.

    A field takes what a user gives, or a value that has been converted before.

    Raises:
        ConfigurationError: a value is out of its range or of the wrong kind.
    """

    pending: tuple[str, ...] = field(default=())
    """Names of the settings that the clients agree on in round 0.

    Until then the step counts have their upper limit, and the compression is the one that loses nothing.
    """

    def __post_init__(self) -> None:
        self._settle_given()
        super().__post_init__()
        require(
            self.buffers == "local" or not self.takes_turns,
            "buffers='average' needs one client per rank in every round: where clients take turns each keeps its own; "
            "leave buffers at 'local'",
        )
        for name, instead in INSTEAD_OF_AUTO.items():
            is_open = name in self.pending
            require(
                not is_open or self.delay_steps > 0,
                f"{name}='auto' finds what hides an exchange behind local steps, and with delay_steps=0 nothing is "
                f"hidden; {instead}",
            )
            require(
                not is_open or self.block_order != "cyclic",
                f"{name}='auto' needs every client to train the same block in a round, and with block_order='cyclic' "
                f"they do not; {instead}",
            )
        require(
            "compression" not in self.pending or self.local_steps > 1,
            "compression='auto' times the local steps of round 0, of which the first one warms up: with local_steps=1 "
            f"there is no other; {INSTEAD_OF_AUTO['compression']}, or raise local_steps",
        )
        require(
            self.blocks != AUTO or "local_steps" not in self.pending or "delay_steps" in self.pending,
            "blocks='auto' must know how many exchanges are in flight, and with local_steps='auto' and a number for "
            "delay_steps that is open until round 0 runs; leave delay_steps out, or give local_steps a number",
        )
        require(
            not self.is_elastic or self.silence_s >= 2 * self.heartbeat_s,
            f"silence_s ({self.silence_s:g}) must be at least twice heartbeat_s ({self.heartbeat_s:g}), else a healthy "
            "site looks lost",
        )
        refuse_with_secure(
            self.aggregation,
            AUTO if "compression" in self.pending else self.compression,
            weighting=self.weighting,
            block_order=self.block_order,
            buffers=self.buffers,
            cohort_sampling=self.cohort_sampling,
            missing_client_state=self.missing_client_state,
            nonfinite_delta=self.nonfinite_delta,
            own_local_s=self.own_local_s,
            min_clients=self.min_clients if self.is_elastic else None,
        )
        refuse_with_low_rank(self.compression, is_elastic=self.is_elastic)
        for name in ("exchange_timeout_s", "straggler_timeout_s"):
            limit_s: float = getattr(self, name)
            require(
                not self.is_elastic or limit_s > self.silence_s,
                f"{name} ({limit_s:g}) must be longer than silence_s ({self.silence_s:g}), else a wait for a lost site "
                "ends before the site is known to be lost",
            )

    def _settle_given(self) -> None:
        """None and "auto" concern several fields, so no converter of one of them can replace these."""
        for name, value in resolve_steps(self.local_steps, self.delay_steps).items():
            if name != "pending" or value:
                object.__setattr__(self, name, value)
        compression: Any = self.compression
        if compression == AUTO:
            object.__setattr__(self, "compression", NoCompression())
            object.__setattr__(self, "pending", (*self.pending, "compression"))

    @property
    def leaves_residuals(self) -> bool:
        """Whether an exchange leaves out a part of the deltas, so that clients keep it for later (error feedback)."""
        return self.compression.is_lossy or self.aggregation.is_lossy

    @functools.cached_property
    def delay(self) -> Delay:
        """When exchanges fall due."""
        return Delay(*divmod(self.delay_steps, self.local_steps), self.delay_warmup_rounds)

    def agreed(self, *, local_steps: int | None = None, compression: Compression | None = None) -> Settings:
        """These settings with what the clients have agreed on, where that was open; None leaves it as it is."""
        found = {"local_steps": local_steps, "delay_steps": local_steps, "compression": compression}
        values: dict[str, Any] = {name: found[name] for name in self.pending if found[name] is not None}
        return dataclasses.replace(self, pending=tuple(name for name in self.pending if name not in values), **values)

    def with_blocks(self, blocks: str | int | tuple[str, ...]) -> Settings:
        """These settings with the blocks on which the clients have agreed, where they are "auto"."""
        return dataclasses.replace(self, blocks=blocks, memory=None) if self.blocks == AUTO else self

    def with_seed(self, seed: int) -> Settings:
        """These settings with another seed."""
        return dataclasses.replace(self, seed=seed)

    def fingerprint(self) -> dict[str, str]:
        """One printable value per setting that all ranks must share, that is all but a rank's own.

        Those of elastic membership are part of it where there is one: a run without it is the run that it always was.
        """
        shared = [
            option.name
            for option in options_of(Settings)
            if option.kind != "own" and (self.is_elastic or option.group is not ElasticOptions)
        ]
        return {name: repr(AUTO if name in self.pending else getattr(self, name)) for name in shared}


INSTEAD_OF_AUTO = {"local_steps": "give local_steps a number", "compression": "give compression a name"}
"""What to do where the clients cannot agree on a setting in round 0."""
OWN_SETTINGS = tuple(option.name for option in options_of(Settings) if option.kind == "own")
"""Settings that may differ between ranks: a site's link, speed and firewall."""


def option_word(value: Aggregation | Compression | ServerOptimizer) -> str:
    """The word for the object's class, as an option of the strategy takes it."""
    choices: tuple[Mapping[str, type], ...] = (AGGREGATIONS, COMPRESSIONS, SERVER_OPTIMIZERS)
    return next(word for named in choices for word, kind in named.items() if kind is type(value))
