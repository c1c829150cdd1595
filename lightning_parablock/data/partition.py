"""Who gets which rows: pure functions of (rows, clients, seed), disjoint and complete, the same on every rank.

Every function returns one ascending list of row indices per client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightning_parablock.data.rows import suggest
from lightning_parablock.errors import DataError

Shares = list[list[int]]

# Keeps the random streams of the held-out split and of each partition apart though they share one seed.
_IID, _DIRICHLET, _HELD_OUT = 1, 2, 3


def partition_iid(n_rows: int, n_clients: int, seed: int) -> Shares:
    """A seeded permutation cut into ``n_clients`` runs whose lengths differ by one at most.

    Raises:
        DataError: there are more clients than rows.
    """
    _require_enough(n_rows, n_clients)
    order = np.random.default_rng([seed, _IID]).permutation(n_rows)
    return [sorted(part.tolist()) for part in np.array_split(order, n_clients)]


def partition_by_label(labels: Sequence[str], n_clients: int) -> Shares:
    """Whole labels dealt to clients, the most frequent first, each to the client with the fewest rows so far.

    Raises:
        DataError: there are fewer labels than clients.
    """
    counts = Counter(labels)
    if len(counts) < n_clients:
        raise DataError(
            f"partition 'label' deals whole labels, and there are {len(counts)} labels for {n_clients} clients; "
            "take fewer clients, or partition 'dirichlet', which splits labels"
        )
    rows_held = [0] * n_clients
    owner: dict[str, int] = {}
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        owner[label] = rows_held.index(min(rows_held))
        rows_held[owner[label]] += count
    return _group([owner[label] for label in labels], n_clients)


def partition_by_named_labels(labels: Sequence[str], client_labels: Sequence[Sequence[str]]) -> Shares:
    """Client i gets the rows whose label is in ``client_labels[i]``; rows with other labels go to none."""
    owner = {label: client for client, named in enumerate(client_labels) for label in named}
    return _group([owner.get(label, -1) for label in labels], len(client_labels))


def check_named_labels(labels: Sequence[str], client_labels: Sequence[Sequence[str]]) -> None:
    """Check that every named label occurs in some row, and is named once.

    Raises:
        DataError: a label is named for two clients, or occurs in no row.
    """
    present = sorted(set(labels))
    seen: dict[str, int] = {}
    for client, label in ((client, label) for client, named in enumerate(client_labels) for label in named):
        if label in seen:
            raise DataError(f"client_labels: label {label!r} is named for clients {seen[label]} and {client}")
        if label not in present:
            raise DataError(
                f"client_labels: client {client}: no row is labelled {label!r}; {suggest(label, present, 'labels')}"
            )
        seen[label] = client


def partition_dirichlet(labels: Sequence[str], n_clients: int, alpha: float, seed: int) -> Shares:
    """Each label's rows in proportions drawn from Dirichlet(alpha, ..., alpha) (arXiv 1909.06335, a label at a time).

    Args:
        labels: Label of every row.
        n_clients: Number of clients.
        alpha: Concentration, dimensionless, > 0: small gives each client few labels, large approaches iid.
        seed: Seed of the draw.

    Raises:
        DataError: there are more clients than rows, or a client drew no row.
    """
    _require_enough(len(labels), n_clients)
    rng = np.random.default_rng([seed, _DIRICHLET])
    column = np.asarray(labels)
    shares: Shares = [[] for _ in range(n_clients)]
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(column == label))
        proportions = rng.dirichlet(np.full(n_clients, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(rows)).astype(int)
        for share, part in zip(shares, np.split(rows, cuts), strict=True):
            share.extend(part.tolist())
    for client, share in enumerate(shares):
        if not share:
            raise DataError(
                f"partition 'dirichlet': client {client} of {n_clients} drew no row at alpha={alpha}, seed={seed}; "
                "raise alpha, or take another seed"
            )
    return [sorted(share) for share in shares]


def partition_by_file(row_files: Sequence[str], files: Sequence[str], n_clients: int) -> Shares:
    """Client i gets the rows of the i-th file.

    Raises:
        DataError: the number of files is not the number of clients.
    """
    if len(files) != n_clients:
        raise DataError(
            f"partition 'files' gives each client one file: {len(files)} files for {n_clients} clients "
            f"({', '.join(files[:12])}); where each client has a source of its own, set partition: own"
        )
    owner = {file: client for client, file in enumerate(files)}
    return _group([owner[file] for file in row_files], n_clients)


def hold_out(
    strata: Sequence[str], fraction: float, seed: int, option: str = "val_fraction"
) -> tuple[list[int], list[int]]:
    """Split row indices into (training, held out); the split does not depend on the number of clients.

    Each stratum gives its part of the held-out rows, to within one row, by systematic sampling over a seeded
    shuffle; so a validation on another number of clients sees no training row.

    Args:
        strata: Stratum of every row: its label, its file, or the same word for all.
        fraction: Part of the rows to hold out, in [0, 1); at least one row if it is > 0.
        seed: Seed of the draw.
        option: Name of the option that set ``fraction``, for messages.

    Raises:
        DataError: there are fewer than two rows to split.
    """
    n_rows = len(strata)
    if fraction == 0:
        return list(range(n_rows)), []
    if n_rows < 2:
        raise DataError(f"{option}={fraction} needs at least 2 rows, found {n_rows}; set 0 or give more rows")
    rng = np.random.default_rng([seed, _HELD_OUT])
    order: list[int] = rng.permutation(n_rows).tolist()
    shuffled = sorted(order, key=list(strata).__getitem__)
    n_held = min(max(1, round(fraction * n_rows)), n_rows - 1)
    picks = np.floor((np.arange(n_held) + rng.random()) * n_rows / n_held).astype(int)
    held = {shuffled[min(int(pick), n_rows - 1)] for pick in picks}
    return [row for row in range(n_rows) if row not in held], sorted(held)


def _group(owners: Sequence[int], n_clients: int) -> Shares:
    shares: Shares = [[] for _ in range(n_clients)]
    for row, owner in enumerate(owners):
        if owner >= 0:
            shares[owner].append(row)
    return shares


def _require_enough(n_rows: int, n_clients: int) -> None:
    if n_clients > n_rows:
        raise DataError(f"more clients than samples: {n_clients} clients, {n_rows} training rows; take fewer clients")
