"""Rows that a client holds out for itself, and the labels of held-out rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.data.rows import Row
from lightning_parablock.data.split import Split, deal
from lightning_parablock.errors import ConfigurationError, DataError
from tests.unit.test_data_text import ANSWERS, examples, ready, sums, val_examples
from tests.unit.tiny_text import byte_tokenizer, write_jsonl


def split_of(labels: str) -> Split:
    """A row a letter, which is its label."""
    return Split([Row({"text": str(i), "kind": label}, "x", i) for i, label in enumerate(labels)], [], ["x"], 0)


@settings(deadline=None, derandomize=True)
@given(
    labels=st.text("abc", min_size=2, max_size=80),
    n_clients=st.integers(1, 4),
    fraction=st.floats(0, 0.95),
    seed=st.integers(0, 2**32),
    partition=st.sampled_from(["iid", "label"]),
)
def test_own_rows_are_disjoint_and_complete(
    labels: str, n_clients: int, fraction: float, seed: int, partition: Any
) -> None:
    options: dict[str, Any] = {"source": "x.jsonl", "partition": partition, "label_field": "kind"}
    split = split_of(labels)
    before = FederatedTextDataModule(**options).options
    after = FederatedTextDataModule(**options, client_val_fraction=fraction).options
    try:
        whole = deal(split, before, n_clients, seed)
    except DataError:
        assume(False)
        raise
    assume(all(len(share.train) >= 2 for share in whole))
    shares = deal(split, after, n_clients, seed)
    assert sorted(row.place for share in shares for rows in share for row in rows) == list(range(len(labels)))
    for share, of_all in zip(shares, whole, strict=True):
        assert not of_all.own
        assert {id(row) for rows in share for row in rows} == {id(row) for row in of_all.train}
        expected = min(max(1, round(fraction * len(of_all.train))), len(of_all.train) - 1) if fraction else 0
        assert len(share.own) == expected
    assert deal(split, after, n_clients, seed) == shares


def test_a_clients_own_examples_are_its_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": sums(tmp_path / "a.jsonl"), "val_fraction": 0.25, **ANSWERS}
    whole = [ready(2, i, **options) for i in (0, 1)]
    clients = [ready(2, i, client_val_fraction=0.2, **options) for i in (0, 1)]
    own = [{tuple(row.tolist()) for row in data.own_val_set.ids} for data in clients]
    for data, of_all, held in zip(clients, whole, own, strict=True):
        assert (len(examples(data)), len(held)) == (12, 3)
        assert examples(data) | held == examples(of_all)
        assert val_examples(data) == val_examples(of_all)  # what all share stays as it was
        assert [len(loader.dataset) for loader in data.val_dataloader()] == [10, 3]
        assert data.describe()["own_validation"][0]["examples"] == 3
    assert not own[0] & own[1]
    assert whole[0].describe()["own_validation"] is None


def test_validation_alone_finds_the_same_rows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": sums(tmp_path / "a.jsonl"), "client_val_fraction": 0.2, **ANSWERS}
    fitted = ready(2, 1, **options)
    alone = FederatedTextDataModule(n_clients=2, client_id=1, **options)
    alone.tokenizer = byte_tokenizer()
    alone.setup("validate")
    assert alone.own_val_set.sha256 == fitted.own_val_set.sha256
    only = ready(2, 1, val_fraction=0, **options)
    assert list(only.val_dataloader().dataset.datasets) == [only.own_val_set]


def test_rows_keep_their_labels(tmp_path: Path) -> None:
    rows = [{"q": f"{i}", "a": "" if i % 5 == 0 else "x", "task": "even" if i % 2 else "odd"} for i in range(40)]
    source = str(write_jsonl(tmp_path / "a.jsonl", rows))
    data = ready(1, 0, source=source, val_fraction=0.5, val_examples=7, label_field="task", **ANSWERS)
    held = data.val_set
    assert (len(held), held.label_names) == (7, ["even", "odd"])
    assert held.row_labels is not None
    texts = [data.tokenizer.decode(ids.tolist()) for ids in held.ids]  # type: ignore[attr-defined]
    for text, label in zip(texts, held.row_labels, strict=True):
        assert held.label_names[label] == ("even" if int(text.split("\n")[0]) % 2 else "odd"), text


def test_a_packed_window_has_the_label_of_the_row_it_begins_in(tmp_path: Path) -> None:
    rows = [{"text": letter * 11, "kind": letter} for letter in "abc"]  # 12 tokens each with the end of text
    data = FederatedTextDataModule(
        str(write_jsonl(tmp_path / "a.jsonl", rows)), sequence_length=8, test_source=str(tmp_path / "a.jsonl")
    )
    data.tokenizer = byte_tokenizer()
    data.setup("test")
    assert data.test_set.rows.tolist() == [0, 0, 1, 2]
    assert data.test_set.row_labels is None
    data.test_set.label(["x", "y", "x"])
    assert (data.test_set.label_names, data.test_set.row_labels) == (["x", "y"], [0, 0, 1, 0])


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"client_val_fraction must be in \[0, 1\)"):
        FederatedTextDataModule("x.jsonl", client_val_fraction=fraction)


def test_too_few_rows_to_hold_one_out(tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": sums(tmp_path / "a.jsonl", 2), "val_fraction": 0, **ANSWERS}
    with pytest.raises(DataError, match=r"client_val_fraction=0\.2 needs at least 2 rows, found 1"):
        ready(2, 0, client_val_fraction=0.2, **options)


def test_own_rows_that_give_no_example_are_named_on_every_client(tmp_path: Path) -> None:
    rows = [{"text": "x" * (40 if i == 0 else 3)} for i in range(4)]
    source = str(write_jsonl(tmp_path / "a.jsonl", rows))
    options: dict[str, Any] = {"sequence_length": 16, "val_fraction": 0, "client_val_fraction": 0.5, "n_clients": 2}
    says: set[str] = set()
    for client in (0, 1):
        data = FederatedTextDataModule(source, client_id=client, **options)
        data.tokenizer = byte_tokenizer()
        with pytest.raises(DataError, match=r"rows that client \d holds out give no example of 16 tokens") as error:
            data.setup("validate")
        says.add(str(error.value))
    assert len(says) == 1


def test_a_new_site_may_have_a_number_above_the_number_of_sites(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    module = FederatedTextDataModule(source=str(tmp_path / "rows.jsonl"), sequence_length=8)
    run = SimpleNamespace(is_newcomer=True)
    strategy = SimpleNamespace(n_clients=3, hosted_clients=(5,), elastic=run)
    module.trainer = SimpleNamespace(world_size=3, global_rank=2, strategy=strategy)  # type: ignore[assignment]
    assert module.clients == (6, (5,))
    run.is_newcomer = False
    assert module.clients == (3, (5,))
