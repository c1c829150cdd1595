"""The options of the text data module: one frozen record, checked once, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lightning_parablock.checks import nearest, require
from lightning_parablock.data.formats import FORMATS, Format
from lightning_parablock.data.sources import STDLIB, Source
from lightning_parablock.data.tokenize import TextFormat, template_fields

Partition = Literal["auto", "own", "iid", "label", "dirichlet", "files"]


@dataclass(frozen=True, kw_only=True)
class TextDataOptions:
    """Every option of :class:`~lightning_parablock.data.text.FederatedTextDataModule`, where they are documented.

    Raises:
        ConfigurationError: a value is out of its range, or two options contradict each other.
    """

    source: str | Sequence[str]
    config_name: str | None
    split: str
    format: Format | None
    text_field: str | None
    prompt_field: str | None
    answer_field: str | None
    template: str | None
    partition: Partition
    label_field: str | None
    client_labels: Sequence[Sequence[str]] | None
    alpha: float
    val_fraction: float
    val_source: str | Sequence[str] | None
    val_split: str
    val_examples: int | None
    client_val_fraction: float
    test_source: str | Sequence[str] | None
    test_split: str
    train_examples: int | None
    sequence_length: int
    batch_size: int
    val_batch_size: int | None
    drop_last: bool
    num_workers: int
    seed: int | None
    n_clients: int | None
    client_id: int | None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_source()
        self._check_text()
        self._check_partition()

    @property
    def train(self) -> Source:
        """The source of the training rows."""
        return Source(_one_or_many(self.source), self.config_name, self.split)

    @property
    def validation(self) -> Source | None:
        """The source of the validation rows, or None where they are held out of the training rows."""
        return None if self.val_source is None else self._other(self.val_source, self.val_split)

    @property
    def test(self) -> Source | None:
        """The source of the test rows, or None where the validation rows serve."""
        return None if self.test_source is None else self._other(self.test_source, self.test_split)

    @property
    def label_column(self) -> str | None:
        """The label column: ``label_field``, or the package where the source is the standard library."""
        return self.label_field or ("package" if self.train.kind == "stdlib" else None)

    @property
    def cutting_rules(self) -> dict[str, str]:
        """The options by which clients that share a source cut it, by name; equal ones give disjoint shares."""
        names = ["client_val_fraction"] if self.validation is not None else ["val_fraction", "client_val_fraction"]
        names += ["alpha", "label_column"] if self.partition == "dirichlet" else []
        names += ["label_column", "client_labels"] if self.partition == "label" else []
        rules = {f"data.{name}": repr(getattr(self, name)) for name in names}
        return {"data.partition": "iid" if self.partition == "auto" else self.partition, **rules}

    @property
    def text_format(self) -> TextFormat:
        """How rows become text."""
        if self.format is not None:
            return TextFormat(self.sequence_length, published=self.format)
        if self.answer_field is None:
            return TextFormat(self.sequence_length, text_field=self.text_field or "text")
        return TextFormat(self.sequence_length, answer_field=self.answer_field, template=self._prompt_template())

    def _other(self, name: str | Sequence[str], split: str) -> Source:
        other = Source(_one_or_many(name), self.config_name, split)
        # A configuration is that of one data set of the hub: of the training rows' where they are from there.
        return other if name == self.source or self.train.kind != "hub" else replace(other, config_name=None)

    def _prompt_template(self) -> str:
        return self.template if self.template is not None else f"{{{self.prompt_field}}}\n"

    def _check_numbers(self) -> None:
        at_least = {"sequence_length": 2, "batch_size": 1, "val_batch_size": 1, "train_examples": 1, "val_examples": 1}
        for name, low in {**at_least, "num_workers": 0, "n_clients": 1, "client_id": 0, "seed": 0}.items():
            value: Any = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
            optional = name not in ("sequence_length", "batch_size", "num_workers")
            require(whole or (optional and value is None), f"{name} must be a whole number >= {low}, got {value!r}")
        require(0 <= self.val_fraction < 1, f"val_fraction must be in [0, 1), got {self.val_fraction}")
        own = self.client_val_fraction
        require(0 <= own < 1, f"client_val_fraction must be in [0, 1), got {own}")
        require(0 < self.alpha < math.inf, f"alpha must be a finite number > 0, got {self.alpha}")
        if self.n_clients is not None and self.client_id is not None:
            require(
                self.client_id < self.n_clients,
                f"client_id counts from 0: it must be below n_clients={self.n_clients}, got {self.client_id}",
            )

    def _check_source(self) -> None:
        require(len(self.source) > 0, "source must not be empty; name a hub id, JSONL files, or 'python-stdlib'")
        require(
            self.validation is None or not self.validation.same_rows(self.train),
            f"val_source {self.train.title} is the training source itself; leave it out and set val_fraction",
        )

    def _check_text(self) -> None:
        if self.format is not None:
            require(
                self.format in FORMATS, f"format={self.format!r} is not known; {nearest(self.format, list(FORMATS))}"
            )
            given = [name for name in ("text_field", "prompt_field", "answer_field", "template") if getattr(self, name)]
            require(not given, f"format {self.format!r} has columns of its own; leave out {' and '.join(given)}")
            return
        if self.answer_field is None:
            given = [name for name in ("prompt_field", "template") if getattr(self, name) is not None]
            require(not given, f"{' and '.join(given)} given without answer_field; name the column of the answers")
            return
        require(self.text_field is None, "text_field and answer_field exclude each other; leave one of them out")
        require(
            self.prompt_field is not None or self.template is not None,
            "answer_field needs a prompt: give prompt_field, or a template such as 'Question: {question}\\nAnswer: '",
        )
        fields = template_fields(self._prompt_template())
        require(
            self.prompt_field is None or self.prompt_field in fields,
            f"prompt_field {self.prompt_field!r} does not occur in template {self.template!r}; leave one of them out",
        )
        require(
            self.answer_field not in fields, f"the template shows the answer column {self.answer_field!r} in the prompt"
        )

    def _check_partition(self) -> None:
        choices = get_args(Partition)
        require(
            self.partition in choices, f"partition={self.partition!r} is not known; {nearest(self.partition, choices)}"
        )
        if self.partition in ("label", "dirichlet"):
            require(
                self.label_column is not None,
                f"partition {self.partition!r} needs label_field, the column that holds the labels",
            )
        if self.partition == "files":
            require(
                self.train.kind == "files",
                f"partition 'files' needs local files as source, got {self.train.title!r}; where each client has a "
                "source of its own, set partition: own",
            )
        if self.client_labels is not None:
            require(
                self.partition == "label", f"client_labels needs partition 'label', got partition {self.partition!r}"
            )
            require(
                len(self.client_labels) > 0 and all(self.client_labels),
                f"client_labels must name at least one label for every client, got {self.client_labels!r}",
            )
            require(
                self.n_clients in (None, len(self.client_labels)),
                f"client_labels names {len(self.client_labels)} clients, and n_clients is {self.n_clients}",
            )


def packages_wanted(options: TextDataOptions) -> list[str] | None:
    """The standard library packages to read: those that clients name, or None for all of them."""
    if options.client_labels is None or options.label_column != "package" or options.source != STDLIB:
        return None
    return sorted({label for labels in options.client_labels for label in labels})


def _one_or_many(name: str | Sequence[str]) -> str | tuple[str, ...]:
    if isinstance(name, str):
        return name
    return name[0] if len(name) == 1 else tuple(name)
