"""From options to rows: which are held out for validation, and which each client trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_parablock.data.options import TextDataOptions, packages_wanted
from lightning_parablock.data.partition import (
    Shares,
    check_named_labels,
    hold_out,
    partition_by_file,
    partition_by_label,
    partition_by_named_labels,
    partition_dirichlet,
    partition_iid,
)
from lightning_parablock.data.rows import Row, label_of, require_columns
from lightning_parablock.data.sources import Source, files_of, load_rows
from lightning_parablock.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of a run before they are dealt to clients.

    Args:
        train: Training rows of all clients together.
        validation: Rows that no client trains on, the same for all.
        files: The files of the source in order.
        left_out: Number of rows that no client gets, because ``client_labels`` does not name their label.
        rows: All rows of the source, those left out and those held out among them.
    """

    train: list[Row]
    validation: list[Row]
    files: list[str]
    left_out: int
    rows: Sequence[Row] = ()


class Share(NamedTuple):
    """The rows of one client.

    Args:
        train: What it trains on.
        own: What it holds out to measure the model on data like its own; no client trains on them.
    """

    train: list[Row]
    own: list[Row]


def load_split(options: TextDataOptions, seed: int) -> Split:
    """Read the sources and hold rows out; a function of the source and the options, whatever the number of clients.

    Raises:
        DataError: a source cannot be read, or a column is missing.
    """
    rows = load_rows(options.train, packages_wanted(options))
    require_columns(rows, options.text_format.columns, options.train.title)
    labels = _labels(rows, options)
    owned = _owned_rows(labels, options) if options.client_labels is not None else list(range(len(rows)))
    if len(owned) < len(rows):
        log.info("client_labels names labels of %d of %d rows; the others are left out", len(owned), len(rows))
    mine = [rows[index] for index in owned]
    files = files_of(rows)
    left_out = len(rows) - len(owned)
    if options.validation is not None:
        return Split(mine, _other_rows(options, options.validation), files, left_out, rows)
    strata = _strata([labels[index] for index in owned] if labels else [], mine, options)
    train, held = hold_out(strata, options.val_fraction, seed)
    return Split([mine[index] for index in train], [mine[index] for index in held], files, left_out, rows)


def load_test_rows(options: TextDataOptions) -> list[Row]:
    """The rows of ``test_source``, which must be given."""
    assert options.test is not None
    return _other_rows(options, options.test)


def deal(split: Split, options: TextDataOptions, clients: int | Sequence[int], seed: int) -> list[Share]:
    """The rows of each client: disjoint, and together all of ``split.train``.

    Args:
        split: The rows.
        options: Those of the data module.
        clients: The numbers of the clients that share the rows, or how many there are.
        seed: Of partitions.

    Raises:
        DataError: the partition does not work out, or a client would get no row, or too few to hold some out.
    """
    numbers = range(clients) if isinstance(clients, int) else clients
    shares = _shares(split, options, len(numbers), seed)
    for client, share in zip(numbers, shares, strict=True):
        if not share:
            raise DataError(
                f"empty shard: client {client} of {len(numbers)} has no training row (source {options.train.title}, "
                f"partition {options.partition!r}, {len(split.validation)} rows held out); give it rows, or lower "
                "val_fraction"
            )
    return [_with_own([split.train[index] for index in share], options, seed) for share in shares]


def _with_own(rows: list[Row], options: TextDataOptions, seed: int) -> Share:
    """Hold out a client's own part, spread over its labels where the partition goes by labels."""
    strata = _labels(rows, options) or [""] * len(rows)
    train, own = hold_out(strata, options.client_val_fraction, seed, "client_val_fraction")
    return Share([rows[index] for index in train], [rows[index] for index in own])


def _shares(split: Split, options: TextDataOptions, n_clients: int, seed: int) -> Shares:
    labels = _labels(split.train, options)
    if options.partition == "files":
        return partition_by_file([row.file for row in split.train], split.files, n_clients)
    if options.partition == "dirichlet":
        return partition_dirichlet(labels, n_clients, options.alpha, seed)
    if options.client_labels is not None:
        return partition_by_named_labels(labels, options.client_labels)
    if options.partition == "label":
        return partition_by_label(labels, n_clients)
    return partition_iid(len(split.train), n_clients, seed)


def _labels(rows: Sequence[Row], options: TextDataOptions) -> list[str]:
    """The label of every row where the partition goes by labels, else nothing."""
    if options.partition not in ("label", "dirichlet") or options.label_column is None:
        return []
    return [label_of(row, options.label_column) for row in rows]


def _owned_rows(labels: Sequence[str], options: TextDataOptions) -> list[int]:
    assert options.client_labels is not None
    check_named_labels(labels, options.client_labels)
    return sorted(row for share in partition_by_named_labels(labels, options.client_labels) for row in share)


def _strata(labels: Sequence[str], rows: Sequence[Row], options: TextDataOptions) -> list[str]:
    """What the held-out rows are spread over: the clients that own them, labels, files, or nothing."""
    if options.client_labels is not None:
        owner = {label: str(client) for client, named in enumerate(options.client_labels) for label in named}
        return [owner[label] for label in labels]
    if options.partition == "files":
        return [row.file for row in rows]
    return list(labels) or [""] * len(rows)


def _other_rows(options: TextDataOptions, source: Source) -> list[Row]:
    rows = load_rows(source)
    require_columns(rows, options.text_format.columns, source.title)
    return rows
