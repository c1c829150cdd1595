"""The text data module: each client's own training examples, and held-out examples for validation."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_parablock.callbacks.gather import gather_objects
from lightning_parablock.data.accounts import account_of
from lightning_parablock.data.formats import Format
from lightning_parablock.data.options import Partition, TextDataOptions
from lightning_parablock.data.own import OwnExamples
from lightning_parablock.data.rows import Row, labels_if_any
from lightning_parablock.data.sampler import ClientSampler, order_seed
from lightning_parablock.data.sharing import Offer, do_together, rows_fingerprint, sharing_clients
from lightning_parablock.data.sources import Source, check_source
from lightning_parablock.data.split import Share, Split, deal, load_split, load_test_rows
from lightning_parablock.data.tokenize import TokenExamples, Tokenizer, make_examples
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.loading.row_accounts import RowAccount, show_here
from lightning_parablock.meeting import default_group

log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Training:
    """The training examples of the clients of this process, and the rows of the clients that share its source."""

    examples: dict[int, TokenExamples]
    rows_per_client: dict[int, int]
    accounts: list[RowAccount]

    def is_of(self, sharing: Sequence[int], hosted: Sequence[int]) -> bool:
        return (list(self.rows_per_client), list(self.examples)) == (list(sharing), list(hosted))


class FederatedTextDataModule(pl.LightningDataModule):
    """Text for causal language models, split over clients; each rank has the training data of those it hosts.

    Batches are dicts of ``input_ids``, ``attention_mask`` and ``labels``, each (batch, sequence_length) torch.long;
    labels are -100 where nothing is to be predicted. Clients that share a source have disjoint training sets and one
    validation set, disjoint from all of them. A client with a source of its own holds validation rows out of that, and
    a validation covers the held-out rows of all clients. With ``client_val_fraction`` there are two validation
    loaders: these examples, and further ones that each client holds out of its own part; no client trains on either.

    Before training each rank logs one line per client that it hosts, such as ``site a: 200 of 200 rows: 190 to train
    on, 10 held out``, with whatever is left out of the source and why.

    Args:
        source: Where the rows come from: a hub id, one or more local JSON Lines files or folders of them, or
            ``python-stdlib`` for the source files of the running Python's standard library.
        config_name: Configuration of a hub data set that has several, such as ``main``.
        split: Split of a hub data set to train on.
        format: The form in which a known data set is published: ``gsm8k`` (question, answer), ``alpaca`` and
            ``mathinstruct`` (instruction, perhaps input, output), ``dolly`` (instruction, perhaps context, response) or
            ``chat`` (messages, or conversations, in the model's chat template; the assistant's last turn is the
            answer). None takes the columns named below.
        text_field: Column of plain text, packed into windows of ``sequence_length`` tokens; None means ``text``.
        prompt_field: Column of the prompt, where prompts and answers are trained; see ``answer_field``.
        answer_field: Column of the answer; given, a row is one example and only answer tokens are labels.
        template: Text of the prompt with column names in braces, such as ``Question: {question}\\nAnswer: ``; None
            means the prompt column and a line break.
        partition: Which client gets which rows. ``auto`` compares the sources of the ranks: those that read the same
            rows cut them into equal parts at random, one per client; a source that no other rank reads is its rank's
            own, and all of it is used. ``own`` (this source is this rank's alone, use all of it) compares nothing. The
            others cut one source that all ranks read, and refuse sources that differ: ``iid`` (equal parts at random),
            ``label`` (whole labels), ``dirichlet`` (each label in proportions drawn from Dirichlet(alpha)), ``files``
            (one file per client).
        label_field: Column of the labels for ``label``, ``dirichlet`` and the validation loss by label; None means
            ``package`` with python-stdlib.
        client_labels: For ``label``: the labels of each client, a list a client; other rows are left out.
        alpha: Concentration of ``dirichlet``, dimensionless, > 0; small values give each client few labels.
        val_fraction: Part of the rows held out for validation, in [0, 1); not used when ``val_source`` is given.
        val_source: A source of validation rows of its own: hub id, files or folders; used whole.
        val_split: Split of a hub data set in ``val_source``.
        val_examples: At most so many validation (or test) examples, evenly spaced over all of them; None keeps all.
        client_val_fraction: Part of each client's own rows that it holds out for a validation of its own, in [0, 1),
            beside ``val_fraction``'s; ``val_examples`` limits these too.
        test_source: A source of rows for test and predict; None takes the validation rows.
        test_split: Split of a hub data set in ``test_source``.
        train_examples: At most so many training examples a client; None keeps all.
        sequence_length: Tokens an example.
        batch_size: Training examples per batch and client.
        val_batch_size: Examples a batch in validate, test and predict; None means ``batch_size``.
        drop_last: Leave out an epoch's last training batch where it is not full.
        num_workers: Worker processes that load batches, a client; 0 loads in the main process.
        tokenizer: Hub id or folder of the tokenizer; None takes the one of the model that is trained.
        seed: Seed of partitions and of the order of examples; None takes the one of ``seed_everything``, or else 0.
        n_clients: Number of clients; None takes those of the run.
        client_id: Number of the client whose data a lone process trains on, from 0; None takes those of the run.

    Attributes:
        problem: An error that was found before the clients met; set-up raises it on all of them.

    Raises:
        ConfigurationError: an option is out of its range, or two contradict each other.
    """

    def __init__(
        self,
        source: str | list[str] = "python-stdlib",
        *,
        config_name: str | None = None,
        split: str = "train",
        format: Format | None = None,
        text_field: str | None = None,
        prompt_field: str | None = None,
        answer_field: str | None = None,
        template: str | None = None,
        partition: Partition = "auto",
        label_field: str | None = None,
        client_labels: list[list[str]] | None = None,
        alpha: float = 0.5,
        val_fraction: float = 0.05,
        val_source: str | list[str] | None = None,
        val_split: str = "test",
        val_examples: int | None = None,
        client_val_fraction: float = 0.0,
        test_source: str | list[str] | None = None,
        test_split: str = "test",
        train_examples: int | None = None,
        sequence_length: int = 128,
        batch_size: int = 1,
        val_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int = 0,
        tokenizer: str | None = None,
        seed: int | None = None,
        n_clients: int | None = None,
        client_id: int | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in TextDataOptions.__dataclass_fields__}
        super().__init__()
        self.options = TextDataOptions(**given)
        self.tokenizer_name = tokenizer
        self.problem: ConfigurationError | None = None
        self._tokenizer: Tokenizer | None = None
        self._split: Split | None = None
        self._sharing: tuple[int, ...] = ()
        self._train: _Training | None = None
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
        made = self._together(lambda: self._make(stage))
        if stage in (None, "fit", "validate"):
            self._refuse_uneven_validation(made)
        if stage in (None, "fit"):
            for account in _present(self._train, "fit").accounts:
                show_here(f"parablock: train: {account.line}")

    def _make(self, stage: str | None) -> tuple[bool, bool]:
        """Make the examples; returns whether there are validation examples, and such of this client's own."""
        self._raise_problem()
        if stage in (None, "fit", "validate") and self._val is None and self._rows().validation:
            self._val = self._held_out_examples(self._rows().validation, "validation")
        if stage in (None, "fit"):
            self._setup_train(self._rows())
        if stage in (None, "fit", "validate") and self.options.client_val_fraction:
            self._setup_own(self._rows())
        if stage in (None, "test", "predict") and self._test is None:
            rows = self._rows().validation if self.options.test is None else load_test_rows(self.options)
            if rows or stage is not None:
                self._test, self._test_rows = self._held_out_examples(rows, "test"), rows
        return self._val is not None, self._own is not None

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The examples of the first client of this process; their order depends on (seed, client, epoch) alone."""
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
        return n_clients, getattr(strategy, "hosted_clients", (0 if trainer is None else trainer.global_rank,))

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
            "train": [_facts(examples) for examples in training.examples.values()],
            "validation": None if self._val is None else _facts(self._val),
            "own_validation": None if self._own is None else [_facts(examples) for examples in self._own.values()],
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
        offers = self._together(self._offer)
        if len(offers) > 1:
            assert self.trainer is not None
            sharing = sharing_clients(offers, self.trainer.global_rank, self._who())
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
        if options.partition != "own" and self._meets_others:
            fingerprint = rows_fingerprint(split.rows, split.files if options.partition == "files" else None)
        rules = {**options.cutting_rules, "data.seed": str(self.seed)}
        return Offer(hosted, n_clients, options.partition, fingerprint, rules)

    @property
    def _meets_others(self) -> bool:
        # A dry run has a trainer of several processes, and is one of them.
        return self.trainer is not None and self.trainer.world_size > 1 and default_group.is_open()

    def _together(self, work: Callable[[], _T]) -> list[_T]:
        """The result of the same work on every rank; collective, and an error on one rank is an error on all."""
        if not self._meets_others:
            return [work()]
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        gather = partial(gather_objects, strategy)
        return do_together(work, gather, self.trainer.global_rank, self._who())

    def _who(self) -> list[str]:
        assert self.trainer is not None
        describe = getattr(self.trainer.strategy, "describe", "rank {}".format)
        return [describe(rank) for rank in range(self.trainer.world_size)]

    def _refuse_uneven_validation(self, made: Sequence[tuple[bool, bool]]) -> None:
        for index, option in enumerate(("val_fraction", "client_val_fraction")):
            without = [rank for rank, has in enumerate(made) if not has[index]]
            if without and len(without) < len(made):
                who = ", ".join(self._who()[rank] for rank in without)
                raise DataError(
                    f"{who} has no validation rows (data.{option}) while other clients have some, so that they cannot "
                    "validate together; give every client some, or none"
                )

    def _setup_train(self, split: Split) -> None:
        n_clients, hosted = self.clients
        if self._train is not None and self._train.is_of(self._sharing, hosted):
            return
        if max(hosted) >= n_clients:
            raise ConfigurationError(
                f"client_id counts from 0: it must be below n_clients={n_clients}, got {max(hosted)}"
            )
        shares = dict(zip(self._sharing, deal(split, self.options, self._sharing, self.seed), strict=True))
        examples: dict[int, TokenExamples] = {}
        for client, share in shares.items():
            is_here = client in hosted
            made = self._examples(share.train, self.options.train_examples if is_here else self._least_examples)
            self._check_shard(len(share.train), client, made)
            if is_here:
                examples[client] = made
                if made.dropped_rows:
                    log.warning("client %d: %d rows dropped: no answer token in them", client, made.dropped_rows)
                log.info("client %d of %d: %d rows, %s", client, n_clients, len(share.train), _facts(made))
        accounts = [self._account(client, split, shares[client], made) for client, made in examples.items()]
        self._train = _Training(examples, {client: len(share.train) for client, share in shares.items()}, accounts)

    def _account(self, client: int, split: Split, share: Share, made: TokenExamples) -> RowAccount:
        name = ClientNames.of(getattr(self.trainer, "strategy", None)).label(client)
        return account_of(name, self.options, split, share, made, self._val, len(self._sharing))

    def _setup_own(self, split: Split) -> None:
        _, hosted = self.clients
        if self._own is not None and list(self._own) == list(hosted):
            return
        shares = dict(zip(self._sharing, deal(split, self.options, self._sharing, self.seed), strict=True))
        for other, share in shares.items():  # the same error on every rank that shares the source
            self._check_own(self._examples(share.own, 1), share.own, other)
        self._own = {client: self._held_out_examples(shares[client].own, "own validation") for client in hosted}

    def _check_own(self, examples: TokenExamples, rows: Sequence[Row], client: int) -> None:
        if len(examples) == 0:
            raise DataError(
                f"the {len(rows)} rows that client {client} holds out give no example of "
                f"{self.options.sequence_length} tokens; raise client_val_fraction, or lower sequence_length"
            )

    @property
    def _least_examples(self) -> int:
        return self.options.batch_size if self.options.drop_last else 1

    def _check_shard(self, n_rows: int, client: int, examples: TokenExamples) -> None:
        if len(examples) >= self._least_examples:
            return
        raise DataError(
            f"empty shard: client {client} of {len(self._sharing)} has {n_rows} rows, which give {len(examples)} "
            f"examples of {self.options.sequence_length} tokens ({examples.dropped_rows} rows without an answer "
            f"token dropped); one batch needs {self._least_examples}: give it more rows, or lower batch_size or "
            "sequence_length"
        )

    def _held_out_examples(self, rows: Sequence[Row], what: str) -> TokenExamples:
        examples = self._examples(rows, None)
        if len(examples) == 0:
            raise DataError(
                f"the {len(rows)} {what} rows give no example of {self.options.sequence_length} tokens; raise "
                "val_fraction, give another source, or lower sequence_length"
            )
        if self.options.val_examples is not None:
            examples = examples.evenly_spaced(self.options.val_examples)
        if (labels := labels_if_any(rows, self.options.label_column)) is not None:
            examples.label(labels)
        return examples

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


def _facts(examples: TokenExamples) -> dict[str, Any]:
    return {
        "examples": len(examples),
        "tokens": examples.n_tokens,
        "dropped_rows": examples.dropped_rows,
        "sha256": examples.sha256,
    }


def _present(value: _T | None, stage: str) -> _T:
    if value is None:
        raise DataError(f"the data are not there yet; call setup({stage!r}) first")
    return value
