"""Who shares a source: ranks compare what they read, then cut it together or keep it whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lightning_parablock.data.rows import Row
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.collectives import Gather
from lightning_parablock.launching.agreement import refuse_differences

T = TypeVar("T")
_TAG = "parablock text data"


@dataclass(frozen=True)
class Offer:
    """What a rank reveals of its source to the others; neither rows nor their number.

    Attributes:
        clients: Numbers of the clients that the rank hosts.
        n_clients: Number of clients in all.
        partition: The option.
        fingerprint: Hash of the source's rows; None where the source is the rank's alone and is not compared.
        rules: Name and value of every option by which ranks that share a source cut it.
    """

    clients: tuple[int, ...]
    n_clients: int
    partition: str
    fingerprint: str | None
    rules: Mapping[str, str]


def rows_fingerprint(rows: Sequence[Row], files: Sequence[str] | None) -> str:
    """SHA-256 over the values of all rows in order, wherever they are stored.

    Args:
        rows: All rows of a source.
        files: The files in order where the number of its file matters for a row, else None.
    """
    number = {file: index for index, file in enumerate(files or ())}
    digest = hashlib.sha256()
    for row in rows:
        place = number.get(row.file, 0)
        values = json.dumps(row.values, sort_keys=True, default=lambda value: type(value).__name__)
        digest.update(f"{place} {values}\n".encode())
    return digest.hexdigest()


def sharing_clients(offers: Sequence[Offer], rank: int, who: Sequence[str]) -> tuple[int, ...]:
    """The clients among which a rank's source is cut, ascending; the same decision on every rank.

    A source marked ``own`` is cut among the clients of its rank alone. With ``auto`` so is one that no other rank
    reads; ranks that read the same rows cut them among all of their clients.

    Args:
        offers: Of all ranks.
        rank: The rank that asks.
        who: Description of each rank.

    Raises:
        ConfigurationError: a client is hosted twice or by no rank, or ranks that share a source cut it differently.
        DataError: a partition that cuts one source, and sources that differ.
    """
    _refuse_unhosted(offers, who)
    together = [r for r, offer in enumerate(offers) if offer.partition != "own"]
    _refuse_different_sources(offers, together, who)
    for fingerprint in dict.fromkeys(offers[r].fingerprint for r in together):
        group = [r for r in together if offers[r].fingerprint == fingerprint]
        refuse_differences([offers[r].rules for r in group], [who[r] for r in group])
    mine = offers[rank]
    if mine.partition == "own":
        return mine.clients
    group = [r for r in together if offers[r].fingerprint == mine.fingerprint]
    return tuple(sorted(client for r in group for client in offers[r].clients))


def do_together(work: Callable[[], T], gather: Gather, rank: int, who: Sequence[str]) -> list[T]:
    """Do each rank's work and collect the results; where it fails on any rank, every rank raises. Collective.

    Raises:
        DataError: the work failed on another rank; names the rank. On the failing rank itself: its own error.
    """
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others wait for this rank in the gather
        failure = error
    told = gather((_TAG, None if failure is None else f"{type(failure).__name__}: {failure}", result))
    strange = [who[r] for r, one in enumerate(told) if not isinstance(one, tuple) or one[:1] != (_TAG,)]
    if strange:
        raise ConfigurationError(
            f"{', '.join(strange)} uses another data module than {who[rank]}; use the same one on every client"
        )
    failed = {who[r]: problem for r, (_, problem, _) in enumerate(told) if problem is not None}
    same_everywhere = len(failed) == len(told) and len(set(failed.values())) == 1
    if failure is not None and (same_everywhere or not isinstance(failure, ConfigurationError)):
        raise failure
    if failed:
        said = "; ".join(f"{name} ended on an error of its own: {problem}" for name, problem in failed.items())
        raise DataError(said) from failure
    return [one for _, _, one in told]


def refuse_uneven_validation(made: Sequence[tuple[bool, bool]], who: Callable[[], Sequence[str]]) -> None:
    """Refuse validation sets that some ranks have and others do not: a validation is collective.

    Args:
        made: For each rank: whether it has shared validation examples, and examples of its clients' own.
        who: Describes the ranks.

    Raises:
        DataError: some ranks have examples of a kind and some have none.
    """
    for index, option in enumerate(("val_fraction", "client_val_fraction")):
        without = [rank for rank, has in enumerate(made) if not has[index]]
        if without and len(without) < len(made):
            names = ", ".join(who()[rank] for rank in without)
            raise DataError(
                f"{names} has no validation rows (data.{option}) while other clients have some, so that they cannot "
                "validate together; give every client some, or none"
            )


def refuse_shared(sharing: Sequence[int], hosted: Sequence[int]) -> None:
    """Refuse a source that other clients have cut among themselves before this site came.

    Args:
        sharing: The clients that have the source.
        hosted: This site's among them.

    Raises:
        DataError: there are others.
    """
    others = [client for client in sharing if client not in hosted]
    if others:
        raise DataError(
            f"this site is new in the run, and its rows are those of clients {', '.join(map(str, others))}, which they "
            "have cut among themselves; give it a source of its own, or set partition: own to train on all of it"
        )


def _refuse_unhosted(offers: Sequence[Offer], who: Sequence[str]) -> None:
    hosts: dict[int, list[str]] = {client: [] for client in range(offers[0].n_clients)}
    for offer, name in zip(offers, who, strict=True):
        for client in offer.clients:
            hosts.setdefault(client, []).append(name)
    for client, names in hosts.items():
        if len(names) != 1:
            hosted = f"{' and '.join(names)} both have" if names else "no rank has"
            raise ConfigurationError(
                f"{hosted} the data of client {client} of {offers[0].n_clients}; leave client_id and n_clients out, "
                "they are those of the run"
            )


def _refuse_different_sources(offers: Sequence[Offer], together: Sequence[int], who: Sequence[str]) -> None:
    explicit = sorted({offers[r].partition for r in together} - {"auto"})
    readers: dict[str | None, list[str]] = {}
    for r in together:
        readers.setdefault(offers[r].fingerprint, []).append(who[r])
    if not explicit or len(readers) < 2:
        return
    groups = "; ".join(", ".join(names) for names in readers.values())
    raise DataError(
        f"partition {explicit[0]!r} cuts one source that all clients read, but their rows differ, so that each client "
        f"would drop rows of its own. Clients with the same rows, separated by semicolons: {groups}. Where each client "
        "has a source of its own, set partition: own (or auto); else make the sources the same"
    )
