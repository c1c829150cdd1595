"""Bytes of one exchange: the payloads as encoded and the header of every message.

They are exact, but for low_rank, whose two factors take turns: of these the larger one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from lightning_parablock.codecs.compression import Compression, LowRank
from lightning_parablock.codecs.low_rank import FactorLayout, Shapes
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.server.payloads import Payloads
from lightning_parablock.settings import Settings
from lightning_parablock.transport.chunks import HEADER_BYTES, chunks_of, shard_bounds


@dataclass(frozen=True)
class Traffic:
    """Bytes that one client sends and receives in one exchange, message headers included."""

    upload_bytes: int
    download_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of messages with their headers: of a part on its way to the server, and back.

    Attributes:
        delta_bytes: Header and payload of a delta.
        commit_bytes: Header and payload of a commit.
    """

    delta_bytes: int
    commit_bytes: int


@dataclass(frozen=True)
class Deltas:
    """How many deltas of an exchange pass through a rank; each is sent in parts to the ranks that serve it.

    Attributes:
        own: Deltas that it sends: its clients in the cohort.
        others: Deltas of which the others send it the parts that it serves.
    """

    own: int
    others: int


def carried_scalars(numel: int, shapes: Shapes, compression: Compression) -> int:
    """Number of scalars that an exchange of a block carries, the larger one of two visits where they differ.

    Args:
        numel: Scalars of the block.
        shapes: Of its parameters; empty where they are not known, and then it counts as one vector.
        compression: The codec.
    """
    if not isinstance(compression, LowRank) or not shapes:
        return numel
    return FactorLayout(shapes, compression.rank).most_carried


@cache
def _sizes(payloads: Payloads, parts: tuple[int, ...]) -> Sizes:
    """Of all messages that carry parts of so many scalars once."""
    return Sizes(
        sum(HEADER_BYTES + payloads.contribution_bytes(scalars) for scalars in parts),
        sum(HEADER_BYTES + payloads.commit_bytes(scalars) for scalars in parts),
    )


def message_sizes(parts: Iterable[int], settings: Settings) -> Sizes:
    """Bytes of the messages that carry parts of so many scalars, each once."""
    payloads = Payloads(settings.aggregation, settings.compression.of_values, settings.server_optimizer)
    return _sizes(payloads, tuple(parts))


def largest_message_bytes(scalars: int, settings: Settings) -> int:
    """Bytes of the largest message of a shard of ``scalars`` scalars."""
    parts = chunks_of(slice(0, scalars), settings.chunk_bytes, settings.topology)
    sizes = message_sizes((max(part.stop - part.start for part in parts),), settings)
    return max(sizes.delta_bytes, sizes.commit_bytes)


def traffic_of_clients(numel: int, n_clients: int, settings: Settings) -> list[Traffic]:
    """Traffic of each client in one exchange of a block of ``numel`` scalars, by client id.

    A client sends its delta on every other client's shard and its own shard's commit to every other client, and
    receives the other clients' deltas on its shard and the commits of the others' shards. Without headers this is
    2 (N - 1) S q bytes over all clients, in either topology (docs/method.md, "What it can gain").
    """
    return traffic_of_ranks(numel, [Deltas(1, n_clients - 1)] * n_clients, settings)


def traffic_of_ranks(numel: int, deltas: Sequence[Deltas], settings: Settings) -> list[Traffic]:
    """The same for ranks that host any number of clients, of which any number is in the cohort, by rank.

    No rank adds up its clients' deltas before they are sent, and every commit goes to every rank.
    """
    shards = shard_bounds(numel, len(deltas), settings.topology)
    lengths = [shard.stop - shard.start for shard in shards]
    of_length = {length: message_sizes(_parts(length, settings), settings) for length in set(lengths)}  # two at most
    each = [of_length[length] for length in lengths]
    delta_bytes, commit_bytes = sum(one.delta_bytes for one in each), sum(one.commit_bytes for one in each)
    return [
        Traffic(
            count.own * (delta_bytes - served.delta_bytes) + (len(deltas) - 1) * served.commit_bytes,
            count.others * served.delta_bytes + commit_bytes - served.commit_bytes,
        )
        for count, served in zip(deltas, each, strict=True)
    ]


def _parts(scalars: int, settings: Settings) -> tuple[int, ...]:
    parts = chunks_of(slice(0, scalars), settings.chunk_bytes, settings.topology)
    return tuple(part.stop - part.start for part in parts)


def traffic_by_role(numel: int, n_clients: int, settings: Settings) -> dict[str, Traffic]:
    """Traffic of one exchange by role; shards differ by at most 1024 scalars, and "every client" is the busiest."""
    clients = traffic_of_clients(numel, n_clients, settings)
    if n_clients == 1:
        return {"the only client": clients[0]}
    if settings.topology == "star":
        return {"client 0, which serves": clients[0], "every other client": clients[1]}
    return {"every client": busiest(clients)}


def rounds_within(budget_bytes: float, numels: Sequence[int], n_clients: int, settings: Settings) -> int:
    """Number of rounds, from the first one on, whose uploads fit in the budget of a client, the mean over the clients.

    Args:
        budget_bytes: Bytes of all exchanges together.
        numels: Numbers of scalars of the blocks, in order.
        n_clients: Number of clients, which all take part in every round.
        settings: Settings, whose block order and seed determine which blocks come first.

    Raises:
        ConfigurationError: the budget is not enough for one round, or there is only one client, which sends nothing.
    """
    if n_clients == 1:
        raise ConfigurationError("a budget of bytes needs several clients: one alone sends nothing")
    each = [sum(t.upload_bytes for t in traffic_of_clients(n, n_clients, settings)) / n_clients for n in numels]
    spent, rounds = 0.0, 0
    while (
        spent := spent + each[block_of_round(settings.block_order, len(each), rounds, settings.seed)]
    ) <= budget_bytes:
        rounds += 1
    if rounds == 0:
        raise ConfigurationError(
            f"a budget of {budget_bytes:,.0f} bytes is less than the {spent:,.0f} a client sends in the first round"
        )
    return rounds


def busiest(clients: list[Traffic]) -> Traffic:
    """Traffic of the client with the most bytes."""
    return max(clients, key=lambda traffic: traffic.upload_bytes)
