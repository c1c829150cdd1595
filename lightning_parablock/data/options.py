"""The options of the text data module, each written once: type, default, check and help text on one field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning_parablock.checks import check_choice, require, whole
from lightning_parablock.data.formats import FORMATS, Format
from lightning_parablock.data.sources import STDLIB, Source
from lightning_parablock.data.tokenize import TextFormat, template_fields
from lightning_parablock.options import OptionGroup, option, record

Partition = Literal["auto", "own", "iid", "label", "dirichlet", "files"]


def _check_fraction(name: str, value: Any) -> None:
    require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")


def _check_alpha(name: str, value: Any) -> None:
    require(0 < value < math.inf, f"{name} must be a finite number > 0, got {value}")


def _check_format(name: str, value: Any) -> None:
    if value is not None:
        check_choice(name, value, list(FORMATS))


def _check_source(name: str, value: Any) -> None:
    require(len(value) > 0, f"{name} must not be empty; name a hub id, JSONL files, or 'python-stdlib'")


@record
class TextDataOptions(OptionGroup):
    """Every option of :class:`~lightning_parablock.data.text.FederatedTextDataModule`.

    Raises:
        ConfigurationError: a value is out of its range, or two options contradict each other.
    """

    source: str | list[str] = option(
        default=STDLIB,
        kind="own",
        kw_only=False,
        check=_check_source,
        help="Source of the rows: a hub id, one or more local JSON Lines files or folders of them, or "
        "`python-stdlib` for the source files of the running Python's standard library.",
    )
    config_name: str | None = option(
        default=None,
        kind="own",
        help="Configuration of a hub data set that has several, such as `main`.",
    )
    split: str = option(default="train", kind="own", help="Split of a hub data set to train on.")
    format: Format | None = option(
        default=None,
        kind="own",
        check=_check_format,
        help="Published form of the rows: `gsm8k`, `alpaca`, `mathinstruct`, `dolly` or `chat`; None uses the columns "
        "that the next options name. `gsm8k` has question and answer; `alpaca` and `mathinstruct` have instruction, "
        "perhaps input, and output; "
        "`dolly` has instruction, perhaps context, and response; `chat` has messages, or conversations, which are "
        "written in the model's chat template, and the assistant's last turn is the answer.",
    )
    text_field: str | None = option(
        default=None,
        kind="own",
        help="Column of plain text, packed into windows of `sequence_length` tokens; None means `text`.",
    )
    prompt_field: str | None = option(
        default=None,
        kind="own",
        help="Column of the prompt, for training on prompts and answers; see `answer_field`.",
    )
    answer_field: str | None = option(
        default=None,
        kind="own",
        help="Column of the answer. If it is given, each row is one example and only answer tokens are labels.",
    )
    template: str | None = option(
        default=None,
        kind="own",
        help="Text of the prompt with column names in braces, such as `Question: {question}\\nAnswer: `; None means "
        "the prompt column and a line break.",
    )
    partition: Partition = option(
        default="auto",
        help="Which client gets which rows: `auto`, `own`, `iid`, `label`, `dirichlet` or `files`. `auto` compares the "
        "sources of the ranks: ranks that read the same rows "
        "cut them into equal random parts, one per client; a source that no other rank reads is used whole by its own "
        "rank. `own` compares nothing and uses this rank's source whole. The others cut one source that all ranks "
        "read, and refuse sources that differ: `iid` (equal random parts), `label` (whole labels), `dirichlet` (each "
        "label in proportions drawn from Dirichlet(alpha)), `files` (one file per client).",
    )
    label_field: str | None = option(
        default=None,
        help="Column of the labels for `label`, `dirichlet` and the validation loss by label; None means `package` "
        "with `python-stdlib`.",
    )
    client_labels: list[list[str]] | None = option(
        default=None,
        help="Labels of each client for `label`, one list per client. Rows with other labels are left out.",
    )
    alpha: float = option(
        default=0.5,
        check=_check_alpha,
        help="Concentration of `dirichlet`, dimensionless, > 0; small values give each client few labels.",
    )
    val_fraction: float = option(
        default=0.05,
        check=_check_fraction,
        help="Fraction of the rows held out for validation, in [0, 1). Not used if `val_source` is given.",
    )
    val_source: str | list[str] | None = option(
        default=None,
        kind="own",
        help="Separate source of validation rows: hub id, files or folders, used whole.",
    )
    val_split: str = option(default="test", kind="own", help="Split of a hub data set in `val_source`.")
    val_examples: int | None = option(
        default=None,
        kind="own",
        check=whole(1, "examples", or_none=True),
        help="Largest number of validation (or test) examples, evenly spaced over all of them; None keeps all.",
    )
    client_val_fraction: float = option(
        default=0.0,
        check=_check_fraction,
        help="Fraction of each client's own rows that it holds out for its own validation, in [0, 1), in addition to "
        "`val_fraction`. `val_examples` limits these too.",
    )
    test_source: str | list[str] | None = option(
        default=None,
        kind="own",
        help="Source of rows for test and predict; None uses the validation rows.",
    )
    test_split: str = option(default="test", kind="own", help="Split of a hub data set in `test_source`.")
    train_examples: int | None = option(
        default=None,
        kind="own",
        check=whole(1, "examples", or_none=True),
        help="Largest number of training examples per client; None keeps all.",
    )
    sequence_length: int = option(
        default=128, kind="own", check=whole(2, "tokens per example"), help="Tokens per example."
    )
    batch_size: int = option(
        default=1,
        kind="own",
        check=whole(1, "examples per batch"),
        help="Training examples per batch and client.",
    )
    val_batch_size: int | None = option(
        default=None,
        kind="own",
        check=whole(1, "examples per batch", or_none=True),
        help="Examples per batch in validate, test and predict; None means `batch_size`.",
    )
    drop_last: bool = option(
        default=True, kind="own", help="Leave out the last training batch of an epoch if it is not full."
    )
    num_workers: int = option(
        default=0,
        kind="own",
        check=whole(0, "worker processes per client"),
        help="Worker processes per client that load batches; 0 loads in the main process.",
    )
    tokenizer: str | None = option(
        default=None,
        kind="own",
        help="Hub id or folder of the tokenizer; None uses the tokenizer of the model that is trained.",
    )
    seed: int | None = option(
        default=None,
        check=whole(0, "random seed", or_none=True),
        help="Random seed for partitions and the order of examples; None uses the seed of `seed_everything`, or 0.",
    )
    n_clients: int | None = option(
        default=None,
        check=whole(1, "clients", or_none=True),
        help="Number of clients; None uses the clients of the run.",
    )
    client_id: int | None = option(
        default=None,
        kind="own",
        check=whole(0, "number of a client", or_none=True),
        help="Number of the client whose data a single process trains on, from 0; None uses the clients of the run.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_clients()
        self._check_sources()
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

    def _check_clients(self) -> None:
        if self.n_clients is not None and self.client_id is not None:
            require(
                self.client_id < self.n_clients,
                f"client_id counts from 0: it must be below n_clients={self.n_clients}, got {self.client_id}",
            )

    def _check_sources(self) -> None:
        require(
            self.validation is None or not self.validation.same_rows(self.train),
            f"val_source {self.train.title} is the training source itself; leave it out and set val_fraction",
        )

    def _check_text(self) -> None:
        if self.format is not None:
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
