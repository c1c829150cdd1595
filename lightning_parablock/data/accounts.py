"""What the text data module does with the rows of each client's source."""

from __future__ import annotations

from lightning_parablock.data.options import TextDataOptions
from lightning_parablock.data.split import Share, Split
from lightning_parablock.data.tokenize import TokenExamples
from lightning_parablock.loading.row_accounts import RowAccount

_LeftOut = tuple[int, str, str]
"""How many, of what, and why."""


def account_of(
    name: str,
    options: TextDataOptions,
    split: Split,
    share: Share,
    train: TokenExamples,
    held_out: TokenExamples | None,
    sharing: int,
) -> RowAccount:
    """The account of one client's rows.

    Args:
        name: The client in words.
        options: Those of the data module.
        split: The source's rows.
        share: The client's part of them.
        train: The examples made of the training rows.
        held_out: The examples made of the rows held out for validation; None where there are none.
        sharing: Number of clients among which the source is cut.
    """
    from_source = options.validation is None
    left_out = [
        (split.left_out, "row", " whose label client_labels does not name"),
        *_training(options, share, train),
        *(_held_out(options, held_out) if held_out is not None and from_source else []),
    ]
    return RowAccount(
        name=name,
        source_rows=len(split.rows),
        train_rows=train.rows_used,
        sharing=sharing,
        held_out_rows=len(split.validation) if from_source else 0,
        own_held_out_rows=len(share.own),
        notes=tuple(f"{count} {what}{'s' * (count > 1)}{why}" for count, what, why in left_out if count),
    )


def _training(options: TextDataOptions, share: Share, train: TokenExamples) -> list[_LeftOut]:
    size, cap = options.sequence_length, options.train_examples
    rest = len(share.train) - train.rows_used - train.dropped_rows
    capped = cap is not None and len(train) == cap
    return [
        (train.dropped_rows, "row", " without an answer token"),
        (rest, "row", f" beyond train_examples={cap}" if capped else f" whose tokens fill no window of {size}"),
        (int(train.lost.any(dim=1).sum()), "row", f" in part, longer than {size} tokens"),
        (len(train) % options.batch_size if options.drop_last else 0, "example", " of each epoch, too few for a batch"),
    ]


def _held_out(options: TextDataOptions, held_out: TokenExamples) -> list[_LeftOut]:
    return [
        (held_out.dropped_rows, "held-out row", " without an answer token"),
        (held_out.left_out, "held-out example", f" beyond val_examples={options.val_examples}"),
    ]
