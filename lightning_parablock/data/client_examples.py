"""The examples of the clients that one process hosts, made of the rows that are theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_parablock.data.accounts import account_of
from lightning_parablock.data.options import TextDataOptions
from lightning_parablock.data.rows import Row, labels_if_any
from lightning_parablock.data.split import Share, Split, deal
from lightning_parablock.data.tokenize import TokenExamples
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.loading.row_accounts import RowAccount

log = logging.getLogger(__name__)

Make = Callable[[Sequence[Row], int | None], TokenExamples]
"""Makes examples of rows, at most so many."""


@dataclass(frozen=True)
class Training:
    """The training examples of the clients of this process, and the rows of the clients that share its source.

    Attributes:
        examples: Examples by client.
        rows_per_client: Number of training rows of each client that shares the source.
        accounts: What was done with the rows, one account per client of this process.
    """

    examples: dict[int, TokenExamples]
    rows_per_client: dict[int, int]
    accounts: list[RowAccount]

    def is_of(self, sharing: Sequence[int], hosted: Sequence[int]) -> bool:
        """Whether these are the examples of just these clients."""
        return (list(self.rows_per_client), list(self.examples)) == (list(sharing), list(hosted))


@dataclass(frozen=True)
class SharedSource:
    """A source's rows and the clients among which they are cut.

    Attributes:
        options: The options of the data module.
        split: The rows.
        sharing: Numbers of the clients that share the source, ascending.
        hosted: Numbers of the clients of this process.
        n_clients: Number of clients of the run.
        seed: Random seed of partitions.
        make: Makes examples of rows.
    """

    options: TextDataOptions
    split: Split
    sharing: tuple[int, ...]
    hosted: tuple[int, ...]
    n_clients: int
    seed: int
    make: Make

    def training(self, held_out: TokenExamples | None, name_of: Callable[[int], str]) -> Training:
        """The training examples of the hosted clients.

        Args:
            held_out: The examples made of the source's held-out rows, for the accounts.
            name_of: Describes a client in words.

        Raises:
            ConfigurationError: a client's number is not below the number of clients.
            DataError: a client that shares the source gets too few rows; the same error on every rank that shares it.
        """
        if max(self.hosted) >= self.n_clients:
            raise ConfigurationError(
                f"client_id counts from 0: it must be below n_clients={self.n_clients}, got {max(self.hosted)}"
            )
        shares = self._shares()
        examples: dict[int, TokenExamples] = {}
        for client, share in shares.items():
            is_here = client in self.hosted
            made = self.make(share.train, self.options.train_examples if is_here else self._least_examples)
            self._refuse_empty_shard(len(share.train), client, made)
            if is_here:
                examples[client] = made
                if made.dropped_rows:
                    log.warning("client %d: %d rows dropped: no answer token in them", client, made.dropped_rows)
                log.info("client %d of %d: %d rows, %s", client, self.n_clients, len(share.train), facts(made))
        accounts = [
            account_of(name_of(client), self.options, self.split, shares[client], made, held_out, len(self.sharing))
            for client, made in examples.items()
        ]
        return Training(examples, {client: len(share.train) for client, share in shares.items()}, accounts)

    def own_validation(self) -> dict[int, TokenExamples]:
        """The examples that each hosted client holds out of its own rows.

        Raises:
            DataError: a client that shares the source holds out too few rows; the same error on every such rank.
        """
        shares = self._shares()
        for client, share in shares.items():
            self._refuse_no_own_examples(self.make(share.own, 1), share.own, client)
        return {
            client: held_out_examples(shares[client].own, "own validation", self.options, self.make)
            for client in self.hosted
        }

    def _shares(self) -> Mapping[int, Share]:
        return dict(zip(self.sharing, deal(self.split, self.options, self.sharing, self.seed), strict=True))

    @property
    def _least_examples(self) -> int:
        return self.options.batch_size if self.options.drop_last else 1

    def _refuse_empty_shard(self, n_rows: int, client: int, examples: TokenExamples) -> None:
        if len(examples) >= self._least_examples:
            return
        raise DataError(
            f"empty shard: client {client} of {len(self.sharing)} has {n_rows} rows, which give {len(examples)} "
            f"examples of {self.options.sequence_length} tokens ({examples.dropped_rows} rows without an answer "
            f"token dropped); one batch needs {self._least_examples}: give it more rows, or lower batch_size or "
            "sequence_length"
        )

    def _refuse_no_own_examples(self, examples: TokenExamples, rows: Sequence[Row], client: int) -> None:
        if len(examples) == 0:
            raise DataError(
                f"the {len(rows)} rows that client {client} holds out give no example of "
                f"{self.options.sequence_length} tokens; raise client_val_fraction, or lower sequence_length"
            )


def held_out_examples(rows: Sequence[Row], what: str, options: TextDataOptions, make: Make) -> TokenExamples:
    """Examples to measure on, labelled where the rows have labels.

    Args:
        rows: The rows.
        what: What they are for, in words.
        options: The options of the data module.
        make: Makes examples of rows.

    Raises:
        DataError: the rows give no example.
    """
    examples = make(rows, None)
    if len(examples) == 0:
        raise DataError(
            f"the {len(rows)} {what} rows give no example of {options.sequence_length} tokens; raise "
            "val_fraction, give another source, or lower sequence_length"
        )
    if options.val_examples is not None:
        examples = examples.evenly_spaced(options.val_examples)
    if (labels := labels_if_any(rows, options.label_column)) is not None:
        examples.label(labels)
    return examples


def facts(examples: TokenExamples) -> dict[str, Any]:
    """What examples are, for a JSON manifest."""
    return {
        "examples": len(examples),
        "tokens": examples.n_tokens,
        "dropped_rows": examples.dropped_rows,
        "sha256": examples.sha256,
    }
