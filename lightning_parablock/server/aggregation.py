"""What travels in an exchange, and how the server of a shard makes one mean of it: the two ends of every payload.

A site turns the uploads of its clients into contributions, one per sender; a server reads those of all senders and
makes the mean; its commit is written and read here, too. So what the bytes mean is decided in one place, by one object,
and transports carry them without knowing. Every transport aggregates here, whether a contribution came as a message or
not, so all of them give the same bits.

Contributions are worked on part by part, in any order, and never twice. Whatever a rule has to do with a delta
(residual, rounding, masks) it does when its part is written.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload

Uploads = Mapping[int, Upload]
"""What the clients of a rank bring to an exchange, by client id."""


class Contribution(Protocol):
    """What one sender adds to an exchange. Each part is asked for once, on one of two threads."""

    @property
    def weight(self) -> int:
        """n_i of the mean, as the message's header says it."""
        ...

    @property
    def gradient_norm(self) -> float:
        """Gradient norm of the block at the client's first local step, likewise."""
        ...

    def write(self, part: slice, payload: Tensor, coder: Coder) -> None:
        """Write a part into a message for another rank.

        Args:
            part: Which of the scalars that the exchange carries.
            payload: Shape (contribution_bytes(part),), uint8.
            coder: That of the calling thread.
        """
        ...

    def here(self, part: slice, coder: Coder) -> Tensor:
        """A part for a server on this rank: what :meth:`Aggregator.read` would make of its message."""
        ...


@dataclass(frozen=True)
class Received:
    """A sender's contribution to a part of a block, as the server got it.

    Attributes:
        weight: See :class:`Contribution`.
        gradient_norm: See :class:`Contribution`.
        read: Returns the part in the form in which the aggregator adds it up. It may be a buffer that the next sender's
            part overwrites.
    """

    weight: int
    gradient_norm: float
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Aggregate:
    """What the server is to learn from the clients about a part of a block.

    Attributes:
        mean: G of the part, shape (scalars,), float32; may be changed, and the next aggregate overwrites it.
        gradient_norm: Mean of the clients' gradient norms; NaN where no client has one.
    """

    mean: Tensor
    gradient_norm: float


class Aggregator(ABC):
    """One way from deltas to their mean, on one rank.

    Its methods are called on several threads; those that a server calls (:meth:`aggregate` and :meth:`commit`) on one.

    Attributes:
        works_ahead: Whether :meth:`prepare` has anything to do.
    """

    works_ahead = False

    # --- an exchange begins and ends ----------------------------------------------------------------------------------

    def stages(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> tuple[Aggregator, ...]:
        """What an exchange consists of: each stage is carried out by all ranks before the next one begins.

        Args:
            key: The exchange.
            uploads: Those of this rank's clients, by client id.
            cohort: Ids of all clients that take part.
        """
        del key, uploads, cohort
        return (self,)

    def prepare(self, key: Key, cohort: Collection[int]) -> None:
        """Work ahead for an exchange whose clients still train; on a thread of its own."""
        del key, cohort

    def settle(self, round_index: int) -> None:
        """All clients have merged the round: what it has told counts from now on."""
        del round_index

    def told(self, key: Key) -> Scale | None:
        """What an exchange that is complete here tells later ones of the sizes of the block's values; None: nothing."""
        del key
        return None

    def state(self) -> list[list[Any]]:
        """What later exchanges need of earlier ones, the same on all ranks; for a checkpoint."""
        return []

    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        """Restore :meth:`state`, before what was in flight is submitted again."""
        del state

    # --- what a site sends --------------------------------------------------------------------------------------------

    @abstractmethod
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        """What this rank sends in a stage, by sender, ascending; arguments as for :meth:`stages`."""

    @abstractmethod
    def senders(self, hosted: Sequence[int], cohort: Collection[int]) -> list[int]:
        """The senders of a rank that hosts these clients: the keys of its :meth:`contributions`."""

    def carried_scalars(self, key: Key, numel: int) -> int:
        """Number of scalars that the exchange of a block carries: what is cut into shards and parts.

        Args:
            key: The exchange, whose :meth:`stages` are known.
            numel: Scalars of the block.
        """
        del key
        return numel

    @abstractmethod
    def contribution_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        """Length in bytes of a contribution's part of this number of scalars."""

    # --- what a server makes of it ------------------------------------------------------------------------------------

    def begin(self, server: ServerShard, key: Key) -> None:
        """Before the first part of a stage is served, and after all exchanges before this one."""
        server.begin(*key)

    @abstractmethod
    def read(self, payload: Tensor, scalars: int, coder: Coder) -> Tensor:
        """A part from another rank in the form in which it is added up: a view, or a buffer that is used again."""

    @abstractmethod
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        """Aggregate a part of a block.

        Args:
            key: The exchange.
            received: By sender, from all senders of the exchange.
            part: Which of the scalars that the exchange carries.
        """

    # --- what comes back ----------------------------------------------------------------------------------------------

    def brings_increment(self, server: ServerShard) -> bool:
        """Whether what ranks read of a commit is the increment of W, and not W itself."""
        return server.compression.is_lossy

    def commit_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        """Length in bytes of a commit's part of this number of scalars."""
        del key
        return coder.codec.payload_bytes(scalars)

    def commit(
        self, server: ServerShard, key: Key, within: slice, aggregate: Aggregate, payload: Tensor
    ) -> Tensor | None:
        """Let the server take in a part and write what all ranks are to know of it.

        Args:
            server: This rank's shard.
            key: The exchange.
            within: Scalars of the shard's slice of the block.
            aggregate: What was made of the part.
            payload: Shape (commit_bytes(part),), uint8, on the host; overwritten.

        Returns:
            What :meth:`read_commit` makes of the payload; a view that the next call overwrites.
        """
        return server.commit(*key, within, aggregate.mean, payload)

    def read_commit(self, key: Key, part: slice, payload: Tensor, coder: Coder) -> Tensor | None:
        """What another server's commit is of a part of the new W, or of its increment: shape (scalars,), float32.

        None where the stage does not bring it.
        """
        del key
        return coder.decode(payload, part.stop - part.start)

    def whole(self, server: ServerShard, key: Key, carried: Tensor) -> Tensor:
        """What an exchange brings of a whole block, once all parts are here: W, or its increment.

        Args:
            server: This rank's shard.
            key: The exchange.
            carried: Shape (carried_scalars(key),), float32; may be changed, or returned.

        Returns:
            Shape (numel of the block,).
        """
        del server, key
        return carried


class MeanAggregator(Aggregator):
    """The weighted mean over the clients, added in ascending client id: each client is a sender."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")

    @override
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        del key, cohort
        return dict(sorted(uploads.items()))

    @override
    def senders(self, hosted: Sequence[int], cohort: Collection[int]) -> list[int]:
        return [client for client in hosted if client in cohort]

    @override
    def contribution_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        del key
        return coder.codec.payload_bytes(scalars)

    @override
    def read(self, payload: Tensor, scalars: int, coder: Coder) -> Tensor:
        return coder.decode(payload, scalars).cpu()

    @override
    @torch.no_grad()
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        del key
        ordered = [received[client] for client in sorted(received)]
        weights = [one.weight for one in ordered]
        mean = weighted_mean((one.read() for one in ordered), weights, self._buffer(part.stop - part.start))
        return Aggregate(mean, mean_norm([one.gradient_norm for one in ordered], weights))

    def _buffer(self, scalars: int) -> Tensor:
        if self._scratch.numel() < scalars:
            # Never the default type: Lightning changes it for all threads while a bf16-true model computes.
            self._scratch = torch.empty(scalars, dtype=torch.float32, device="cpu")
        return self._scratch[:scalars]


def weighted_mean(deltas: Iterable[Tensor], weights: Sequence[int], out: Tensor) -> Tensor:
    """G = (sum of n_i Delta_i) / (sum of n_i), added in the order given, which must be ascending client id.

    Args:
        deltas: One vector per client, all of the shape of ``out``; each is read before the next is asked for.
        weights: n_i, one per client: 1 for uniform weighting, else the samples trained in the round. 0 leaves a client
            out; where all are 0 no client trained, and the mean is zero.
        out: Receives the mean; must be none of the deltas.

    Returns:
        ``out``.
    """
    first = True
    for delta, weight in zip(deltas, weights, strict=True):
        if weight == 0:
            continue
        if first:
            torch.mul(delta, weight, out=out)
        elif weight == 1:
            out.add_(delta)  # the bits of delta * 1
        else:
            out.add_(delta * weight)
        first = False
    return out.zero_() if first else out.div_(sum(weights))


def mean_norm(norms: Sequence[float], weights: Sequence[int]) -> float:
    """Mean of the clients' finite gradient norms, weighted as their deltas are; NaN where no client has one."""
    known = [pair for pair in zip(norms, weights, strict=True) if pair[1] and math.isfinite(pair[0])]
    return sum(norm * weight for norm, weight in known) / sum(weight for _, weight in known) if known else math.nan
