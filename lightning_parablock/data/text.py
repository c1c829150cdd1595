"""The text data module: each client's own training examples, and held-out examples for validation."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_parablock.data.client_examples import SharedSource, Training, facts, held_out_examples
from lightning_parablock.data.options import TextDataOptions
from lightning_parablock.data.own import OwnExamples
from lightning_parablock.data.peers import Peers
from lightning_parablock.data.rows import Row
from lightning_parablock.data.sampler import ClientSampler, order_seed
from lightning_parablock.data.sharing import (
    Offer,
    refuse_shared,
    refuse_uneven_validation,
    rows_fingerprint,
    sharing_clients,
)
from lightning_parablock.data.sources import Source, check_source
from lightning_parablock.data.split import Split, load_split, load_test_rows
from lightning_parablock.data.tokenize import TokenExamples, Tokenizer, make_examples
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.loading.row_accounts import show_here
from lightning_parablock.options import accepts

_T = TypeVar("_T")


class FederatedTextDataModule(pl.LightningDataModule):
    """Text for causal language models, split over clients; each rank has the training data of those it hosts.

    Batches are dicts of ``input_ids``, ``attention_mask`` and ``labels``, each (batch, sequence_length) torch.long;
    labels are -100 where nothing is to be predicted. Clients that share a source have disjoint training sets and one
    validation set, disjoint from all of them. A client with a source of its own holds validation rows out of that, and
    a validation covers the held-out rows of all clients. With ``client_val_fraction`` there are two validation
    loaders: these examples, and further ones that each client holds out of its own part; no client trains on either.

    Before training each rank logs one line per client that it hosts, such as ``site a: 200 of 200 rows: 190 to train
    on, 10 held out``, with whatever is left out of the source and why.

    The arguments are the options of :class:`~lightning_parablock.data.options.TextDataOptions`.

    Attributes:
        problem: An error that was found before the clients met; set-up raises it on all of them.

    Raises:
        ConfigurationError: an option is out of its range, or two contradict each other.
    """

    @accepts(TextDataOptions)
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = TextDataOptions(**options)
        self.tokenizer_name = self.options.tokenizer
        self.problem: ConfigurationError | None = None
        self._tokenizer: Tokenizer | None = None
        self._split: Split | None = None
        self._sharing: tuple[int, ...] = ()
        self._train: Training | None = None
        self._val: TokenExamples | None = None
        self._own: dict[int, TokenExamples] | None = None
        self._test: TokenExamples | None = None
        self._test_rows: Sequence[Row] = ()

    def check_sources(self, command: str = "fit") -> None:
        """Check, before models are built and without reading anything, that the sources of a command can be read.

        Args:
            command: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            DataError: a source cannot be read.
        """
        options = self.options
        held_out: list[tuple[str, Source | None]] = [("source", options.train), ("val_source", options.validation)]
        later = [("test_source", options.test)] if options.test is not None else held_out
        for option, source in held_out if command in ("fit", "validate") else later:
            if source is not None:
                check_source(source, option)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise what ``stage`` needs; a second call repeats nothing. Collective.

        Ranks compare what they read, and every rank raises where data on one of them cannot be used.

        Raises:
            DataError: a source, a line, a column or a partition cannot be used, on this rank or another one.
            ConfigurationError: there is no tokenizer, or the number of clients contradicts the options.
        """
        if stage in (None, "fit", "validate"):
            self._agree_on_sharing()
        made = self._peers.together(lambda: self._make(stage))
        if stage in (None, "fit", "validate"):
            refuse_uneven_validation(made, self._peers.names)
        if stage in (None, "fit"):
            for account in _present(self._train, "fit").accounts:
                show_here(f"parablock: train: {account.line}")

    def _make(self, stage: str | None) -> tuple[bool, bool]:
        """Make the examples; returns whether there are validation examples, and such of this client's own."""
        self._raise_problem()
        if stage in (None, "fit", "validate") and self._val is None and self._rows().validation:
            self._val = self._held_out(self._rows().validation, "validation")
        if stage in (None, "fit"):
            self._setup_train(self._rows())
        if stage in (None, "fit", "validate") and self.options.client_val_fraction:
            self._setup_own(self._rows())
        if stage in (None, "test", "predict") and self._test is None:
            rows = self._rows().validation if self.options.test is None else load_test_rows(self.options)
            if rows or stage is not None:
                self._test, self._test_rows = self._held_out(rows, "test"), rows
        return self._val is not None, self._own is not None

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The examples of the first client of this process; their order depends on (seed, client, epoch) alone.

        With secure sums, on the site's salt too.
        """
        return self.client_dataloader(self.clients[1][0])

    def client_dataloader(self, client: int) -> DataLoader[dict[str, Any]]:
        """The examples of one of the clients that this rank hosts."""
        examples = _present(self._train, "fit").examples[client]
        sampler = ClientSampler(len(examples), self.seed, client)
        return self._loader(examples, self.options.batch_size, sampler, drop_last=self.options.drop_last)

    def val_dataloader(self) -> Any:
        """The shared held-out examples, then this client's own; one loader where there is one, else none or two."""
        held_out = [self._val, None if self._own is None else OwnExamples(self._own)]
        loaders = [self._loader(examples, self._val_batch_size) for examples in held_out if examples is not None]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The test examples."""
        return self._loader(self.test_set, self._val_batch_size)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The test examples, to be completed by the model."""
        return self.test_dataloader()

    @property
    def seed(self) -> int:
        """The seed of partitions and orders."""
        if self.options.seed is not None:
            return self.options.seed
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where seed_everything leaves it

    @property
    def clients(self) -> tuple[int, tuple[int, ...]]:
        """Number of clients, and those whose data this process has, from 0.

        Raises:
            ConfigurationError: the options name another number of clients than the run has.
        """
        trainer, options = self.trainer, self.options
        processes = 1 if trainer is None else trainer.world_size
        strategy = getattr(trainer, "strategy", None)
        in_run: int = getattr(strategy, "n_clients", processes)
        n_clients, named = options.n_clients or in_run, options.client_labels
        if in_run > 1 and n_clients != in_run:
            raise ConfigurationError(
                f"n_clients={n_clients}, but the run has {in_run} clients; leave n_clients out, and where each client "
                "has a source of its own, set partition: own"
            )
        if options.n_clients is None and named is not None and len(named) != in_run:
            raise ConfigurationError(
                f"client_labels names {len(named)} clients, but the run has {in_run}; start {len(named)} processes, "
                f"set the strategy's clients={len(named)}, or set n_clients={len(named)} and client_id"
            )
        if options.client_id is not None:
            return n_clients, (options.client_id,)
        hosted = getattr(strategy, "hosted_clients", (0 if trainer is None else trainer.global_rank,))
        return self._peers.numbers(n_clients, hosted), hosted

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: the one set, the one ``tokenizer`` names, or the model's.

        Raises:
            ConfigurationError: there is none, or it cannot be loaded.
        """
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def train_set(self) -> TokenExamples:
        """Training examples of the first client of this process; there after ``setup("fit")``."""
        return next(iter(_present(self._train, "fit").examples.values()))

    @property
    def val_set(self) -> TokenExamples:
        """The examples held out of this rank's source; there after ``setup("fit")`` or ``setup("validate")``."""
        return _present(self._val, "validate")

    @property
    def own_val_set(self) -> TokenExamples:
        """The held-out examples of this client's own; there with ``client_val_fraction``, after the same."""
        return next(iter(_present(self._own, "validate").values()))

    @property
    def test_set(self) -> TokenExamples:
        """The test examples; there after ``setup("test")`` or ``setup("predict")``."""
        return _present(self._test, "test")

    def test_answers(self) -> list[str]:
        """The answer of each test example's row, whole, whatever its window holds of it."""
        form = self.options.text_format
        return [form.pair(self._test_rows[row], self.tokenizer)[1] for row in self.test_set.rows.tolist()]

    def train_fingerprint(self) -> str:
        """Hash (SHA-256, hexadecimal) of these training examples: token ids, lengths, label positions."""
        return self.train_set.sha256

    def describe(self) -> dict[str, Any]:
        """What the data are, for a JSON manifest: source, rows per client, tokens and hashes of the clients here.

        ``rows`` has one line per client here; ``rows_per_client`` has the training rows of every client, None for those
        whose source is not read here.
        """
        training = _present(self._train, "fit")
        split, options = self._rows(), self.options
        return {
            "source": options.train.title,
            "python_version": platform.python_version() if options.train.kind == "stdlib" else None,
            "partition": options.partition,
            "seed": self.seed,
            "sequence_length_tokens": options.sequence_length,
            "batch_size_examples": options.batch_size,
            "n_clients": self.clients[0],
            "clients_here": list(training.examples),
            "clients_sharing_source": list(self._sharing),
            "rows": [account.line for account in training.accounts],
            "source_rows": len(split.rows),
            "rows_per_client": [training.rows_per_client.get(client) for client in range(self.clients[0])],
            "rows_left_out": split.left_out,
            "rows_held_out": len(split.validation),
            "train": [facts(examples) for examples in training.examples.values()],
            "validation": None if self._val is None else facts(self._val),
            "own_validation": None if self._own is None else [facts(examples) for examples in self._own.values()],
        }

    @property
    def _val_batch_size(self) -> int:
        return self.options.val_batch_size or self.options.batch_size

    def _rows(self) -> Split:
        if self._split is None:
            self._split = load_split(self.options, self.seed)
        return self._split

    def _agree_on_sharing(self) -> None:
        """Settle which clients share this rank's source; collective."""
        offers = self._peers.together(self._offer)
        if len(offers) > 1:
            assert self.trainer is not None
            sharing = sharing_clients(offers, self.trainer.global_rank, self._peers.names())
            if self._peers.is_newcomer:
                refuse_shared(sharing, self.clients[1])
        else:
            n_clients, hosted = self.clients
            sharing = hosted if self.options.partition == "own" else tuple(range(n_clients))
        if sharing != self._sharing:
            self._sharing, self._train, self._own = sharing, None, None

    def _raise_problem(self) -> None:
        if self.problem is not None:
            raise self.problem

    def _offer(self) -> Offer:
        self._raise_problem()
        split, options = self._rows(), self.options
        n_clients, hosted = self.clients
        fingerprint = None
        if options.partition != "own" and self._peers.are_met:
            fingerprint = rows_fingerprint(split.rows, split.files if options.partition == "files" else None)
        rules = {**options.cutting_rules, "data.seed": str(self.seed)}
        return Offer(hosted, n_clients, options.partition, fingerprint, rules)

    @property
    def _peers(self) -> Peers:
        return Peers(self.trainer)

    def _setup_train(self, split: Split) -> None:
        if self._train is None or not self._train.is_of(self._sharing, self.clients[1]):
            names = ClientNames.of(getattr(self.trainer, "strategy", None))
            self._train = self._shared_source(split).training(self._val, names.label)

    def _setup_own(self, split: Split) -> None:
        if self._own is None or list(self._own) != list(self.clients[1]):
            self._own = self._shared_source(split).own_validation()

    def _shared_source(self, split: Split) -> SharedSource:
        n_clients, hosted = self.clients
        return SharedSource(self.options, split, self._sharing, hosted, n_clients, self.seed, self._examples)

    def _held_out(self, rows: Sequence[Row], what: str) -> TokenExamples:
        return held_out_examples(rows, what, self.options, self._examples)

    def _examples(self, rows: Sequence[Row], at_most: int | None) -> TokenExamples:
        return make_examples(rows, self.tokenizer, self.options.text_format, at_most)

    def _find_tokenizer(self) -> Tokenizer:
        if self.tokenizer_name is not None:
            from lightning_parablock.models.loading import load_tokenizer  # transformers takes seconds to import

            return load_tokenizer(self.tokenizer_name)
        module = None if self.trainer is None else self.trainer.lightning_module
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is None:
            raise ConfigurationError(
                "no tokenizer: the model has none of its own; set the data option tokenizer to a hub id or a folder"
            )
        return cast(Tokenizer, tokenizer)

    def _loader(
        self,
        examples: Dataset[dict[str, Any]],
        batch_size: int,
        sampler: ClientSampler | None = None,
        *,
        drop_last: bool = False,
    ) -> DataLoader[dict[str, Any]]:
        workers = self.options.num_workers
        return DataLoader(
            examples,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Without a generator of its own a loader draws from the global one, and dropout would depend on it.
            generator=torch.Generator().manual_seed(order_seed(self.seed, 0, 0)),
        )


def _present(value: _T | None, stage: str) -> _T:
    if value is None:
        raise DataError(f"the data are not there yet; call setup({stage!r}) first")
    return value
