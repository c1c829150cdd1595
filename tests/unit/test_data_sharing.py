"""Sources that differ between clients are used whole, equal ones are cut, and every row is accounted for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.cohorts import hosted_clients
from tests.unit.test_data_text import ANSWERS, examples, ready, sums, val_examples
from tests.unit.tiny_text import byte_tokenizer, write_jsonl

TOKENIZER = byte_tokenizer()
ENDED = "rank-1 ended on an error of its own: "


class Meeting:
    """Ranks as threads: each gathers as a strategy does, and none waits for longer than the limit."""

    def __init__(self, n_ranks: int) -> None:
        self._barrier, self._values = threading.Barrier(n_ranks, timeout=60), [None] * n_ranks

    def gather_as(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            self._values[rank] = value
            self._barrier.wait()
            gathered = list(self._values)
            self._barrier.wait()
            return gathered

        return gather


def meet(
    modules: Sequence[FederatedTextDataModule], *, sites: Sequence[str] = (), n_clients: int | None = None
) -> list[Exception | None]:
    """Set the modules of all ranks up for a fit, at once; returns the error of each."""
    n_ranks, meeting = len(modules), Meeting(len(modules))
    n_clients = n_clients or n_ranks
    errors: list[Exception | None] = [None] * n_ranks
    for rank, data in enumerate(modules):
        strategy = SimpleNamespace(
            gather_objects=meeting.gather_as(rank),
            describe="rank-{}".format,
            site_names=tuple(sites),
            n_clients=n_clients,
            hosted_clients=tuple(hosted_clients(n_clients, n_ranks)[rank]),
        )
        data.tokenizer = TOKENIZER  # type: ignore[assignment]
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=n_ranks, global_rank=rank, strategy=strategy
        )

    def set_up(rank: int) -> None:
        try:
            modules[rank].setup("fit")
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=set_up, args=(rank,)) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture(autouse=True)
def _in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)


def site(tmp_path: Path, name: str, n_rows: int, letter: str | None = None) -> str:
    """``mine.jsonl`` of a site; the same letter and number of rows make the same rows."""
    (tmp_path / name).mkdir()
    rows = ({"q": f"{letter or name}{i}", "a": f"{i}", "task": "even" if i % 2 else "odd"} for i in range(n_rows))
    return str(write_jsonl(tmp_path / name / "mine.jsonl", rows))


def modules_of(sources: Sequence[str], **options: Any) -> list[FederatedTextDataModule]:
    return [FederatedTextDataModule(source, **ANSWERS, **options) for source in sources]


def fit_together(modules: Sequence[FederatedTextDataModule], **options: Any) -> list[str]:
    """The lines of all clients after a set-up without error."""
    assert meet(modules, **options) == [None] * len(modules)
    return [line for data in modules for line in data.describe()["rows"]]


@pytest.mark.parametrize("partition", ["auto", "own"])
def test_sites_with_data_of_their_own_use_all_of_them(
    tmp_path: Path, partition: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sources = [site(tmp_path, name, n) for name, n in (("a", 200), ("b", 260), ("c", 320))]
    modules = modules_of(sources, partition=partition)
    lines = fit_together(modules, sites=["a", "b", "c"])
    assert lines == [
        "site a: 200 of 200 rows: 190 to train on, 10 held out",
        "site b: 260 of 260 rows: 247 to train on, 13 held out",
        "site c: 320 of 320 rows: 304 to train on, 16 held out",
    ]
    assert all(f"parablock: train: {line}" in caplog.messages for line in lines)
    assert [(len(data.train_set), len(data.val_set)) for data in modules] == [(190, 10), (247, 13), (304, 16)]
    for data in modules:
        assert len(examples(data) | set(val_examples(data))) == len(data.train_set) + len(data.val_set)
    facts = modules[1].describe()
    assert (facts["rows_per_client"], facts["source_rows"]) == ([None, 247, None], 260)
    assert facts["clients_sharing_source"] == [1]


def test_the_same_rows_are_cut_as_by_iid_wherever_they_are_stored(tmp_path: Path) -> None:
    sources = [site(tmp_path, name, 50, "x") for name in "abc"]
    modules = modules_of(sources)
    lines = fit_together(modules)
    alone = [ready(3, i, source=sources[0], partition="iid", **ANSWERS) for i in range(3)]
    for data, expected in zip(modules, alone, strict=True):
        assert data.train_fingerprint() == expected.train_fingerprint()
        assert data.val_set.sha256 == expected.val_set.sha256
        assert data.describe()["rows_per_client"] == expected.describe()["rows_per_client"] == [16, 16, 16]
    assert lines[1] == "client 1: 16 of 50 rows (one of 3 parts): 16 to train on, 2 held out for all of them"


def test_only_those_with_the_same_rows_cut_them(tmp_path: Path) -> None:
    sources = [site(tmp_path, "a", 40, "x"), site(tmp_path, "b", 30), site(tmp_path, "c", 40, "x")]
    modules = modules_of(sources, val_fraction=0)
    lines = fit_together(modules)
    assert lines == [
        "client 0: 20 of 40 rows (one of 2 parts)",
        "client 1: 30 of 30 rows",
        "client 2: 20 of 40 rows (one of 2 parts)",
    ]
    assert len(examples(modules[0]) | examples(modules[2])) == 40
    assert modules[0].describe()["rows_per_client"] == [20, None, 20]


def test_a_source_marked_own_is_used_whole_even_where_another_one_is_equal(tmp_path: Path) -> None:
    modules = modules_of([site(tmp_path, name, 40, "x") for name in "ab"], partition="own", val_fraction=0)
    assert fit_together(modules) == ["client 0: 40 of 40 rows", "client 1: 40 of 40 rows"]
    assert modules[0].train_fingerprint() == modules[1].train_fingerprint()


@pytest.mark.parametrize("partition", ["auto", "own"])
def test_a_ranks_own_source_is_cut_among_the_clients_that_it_hosts(tmp_path: Path, partition: Any) -> None:
    modules = modules_of([site(tmp_path, "a", 40), site(tmp_path, "b", 60)], partition=partition)
    lines = fit_together(modules, n_clients=4, sites=["a", "b"])
    assert lines[:2] == [
        f"client {i} (site a): 19 of 40 rows (one of 2 parts): 19 to train on, 2 held out for all of them"
        for i in (0, 1)
    ]
    assert modules[1].describe()["rows_per_client"] == [None, None, 29, 28]
    assert [len(modules[1].client_dataloader(client).dataset) for client in (2, 3)] == [29, 28]  # type: ignore[arg-type]


def test_alone_the_default_is_iid_and_own_is_everything(tmp_path: Path) -> None:
    source = sums(tmp_path / "a.jsonl")
    first, second = (ready(2, 1, source=source, **ANSWERS, **kind) for kind in ({}, {"partition": "iid"}))
    assert first.train_fingerprint() == second.train_fingerprint()
    whole = ready(2, 1, source=source, partition="own", **ANSWERS)
    assert whole.describe()["rows"] == ["client 1: 40 of 40 rows: 38 to train on, 2 held out"]


@pytest.mark.parametrize(
    "options", [{"partition": "iid"}, {"partition": "label", "label_field": "task"}, {"partition": "files"}]
)
def test_a_partition_of_one_source_refuses_sources_that_differ(tmp_path: Path, options: dict[str, Any]) -> None:
    sources = [site(tmp_path, "a", 40, "x"), site(tmp_path, "b", 30), site(tmp_path, "c", 40, "x")]
    errors = meet(modules_of(sources, **options))
    assert len({str(error) for error in errors}) == 1
    assert isinstance(errors[0], DataError)
    assert f"partition '{options['partition']}' cuts one source" in str(errors[0])
    assert "rank-0, rank-2; rank-1" in str(errors[0]) and "set partition: own" in str(errors[0])


def test_own_sources_may_stand_beside_a_partition(tmp_path: Path) -> None:
    sources = [site(tmp_path, "a", 40, "x"), site(tmp_path, "b", 30), site(tmp_path, "c", 40, "x")]
    partitions: list[Any] = ["iid", "own", "auto"]
    modules = [
        FederatedTextDataModule(source, **ANSWERS, partition=partition, val_fraction=0)
        for source, partition in zip(sources, partitions, strict=True)
    ]
    assert [line.split(" rows")[0] for line in fit_together(modules)] == [
        "client 0: 20 of 40",
        "client 1: 30 of 30",
        "client 2: 20 of 40",
    ]


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("val_fraction", 0.5), ("val_source", "b.jsonl")])
def test_clients_that_share_a_source_must_cut_it_alike(tmp_path: Path, name: str, value: Any) -> None:
    source = site(tmp_path, "a", 40)
    sums(tmp_path / "b.jsonl", 8)
    value = str(tmp_path / value) if name == "val_source" else value
    errors = meet([*modules_of([source]), *modules_of([source], **{name: value})])
    option = "val_fraction" if name == "val_source" else name
    for error in errors:
        assert isinstance(error, ConfigurationError)
        assert f"data.{option} differs between clients: rank-0 has" in str(error)


def test_what_is_wrong_at_one_site_ends_all_and_names_it(tmp_path: Path) -> None:
    good, empty = site(tmp_path, "a", 40), tmp_path / "empty.jsonl"
    empty.write_text("")
    for bad, said in ((str(tmp_path / "b/mine.jsonl"), "does not exist"), (str(empty), "it has no row")):
        errors = meet(modules_of([good, bad]))
        for error in errors:
            assert isinstance(error, DataError)
            assert str(error).startswith("rank-1 ended on an error of its own: DataError: data f") and said in str(
                error
            )
    short = str(write_jsonl(tmp_path / "short.jsonl", [{"q": "q", "a": "a"}]))
    errors = meet(modules_of([good, short], val_fraction=0, batch_size=2))
    assert all(
        "rank-1 ended on an error of its own: DataError: empty shard: client 1 of 1 has 1 rows, which give 1 examples"
        in str(e)
        for e in errors
    )


def test_an_error_that_is_the_same_everywhere_stays_as_it_is(tmp_path: Path) -> None:
    errors = meet(modules_of([str(tmp_path / "none.jsonl")] * 2))
    assert all(str(error).startswith("data file") for error in errors)


def test_an_unforeseen_error_keeps_its_kind_at_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = modules_of([site(tmp_path, name, 40) for name in "ab"])
    monkeypatch.setattr(modules[1], "_setup_train", lambda _: 1 / 0)  # pyright: ignore[reportUnknownLambdaType]
    first, second = meet(modules)
    assert (
        isinstance(first, DataError)
        and str(first) == "rank-1 ended on an error of its own: ZeroDivisionError: division by zero"
    )
    assert isinstance(second, ZeroDivisionError)


def test_all_hold_validation_rows_out_or_none(tmp_path: Path) -> None:
    sources = [site(tmp_path, name, 40) for name in "ab"]
    errors = meet([*modules_of(sources[:1]), *modules_of(sources[1:], val_fraction=0)])
    assert all("rank-1 has no validation rows (data.val_fraction)" in str(error) for error in errors)


def test_a_client_that_two_ranks_take_for_theirs_is_refused(tmp_path: Path) -> None:
    source = site(tmp_path, "a", 40)
    errors = meet(modules_of([source, source], client_id=0))
    assert all("rank-0 and rank-1 both have the data of client 0 of 2" in str(error) for error in errors)
    errors = meet(modules_of([source, source], n_clients=1, client_id=0))
    assert all("leave n_clients out, and where each client has a source of its own" in str(error) for error in errors)


def test_whatever_is_left_out_is_said(tmp_path: Path) -> None:
    rows = [{"q": "q" * (30 if i == 1 else 1), "a": "" if i < 1 else "a"} for i in range(20)]
    source = str(write_jsonl(tmp_path / "a.jsonl", rows))
    data = ready(1, 0, source=source, val_fraction=0, batch_size=4, **ANSWERS)
    assert data.describe()["rows"] == [
        "client 0: 19 of 20 rows; left out: 1 row without an answer token; 1 row in part, longer than 16 tokens; "
        "3 examples of each epoch, too few for a batch"
    ]
    data = ready(1, 0, source=sums(tmp_path / "b.jsonl"), train_examples=12, val_examples=1, **ANSWERS)
    assert data.describe()["rows"] == [
        "client 0: 14 of 40 rows: 12 to train on, 2 held out; left out: 26 rows beyond train_examples=12; "
        "1 held-out example beyond val_examples=1"
    ]
    texts = str(write_jsonl(tmp_path / "c.jsonl", [{"text": "x" * 11} for _ in range(5)]))  # 12 tokens each
    data = ready(1, 0, source=texts, val_fraction=0, sequence_length=16)
    assert data.describe()["rows"] == ["client 0: 4 of 5 rows; left out: 1 row whose tokens fill no window of 16"]
    labels: dict[str, Any] = {"partition": "label", "label_field": "task", "client_labels": [["odd"]]}
    data = ready(1, 0, source=sums(tmp_path / "d.jsonl"), val_fraction=0, **labels, **ANSWERS)
    assert data.describe()["rows"] == [
        "client 0: 10 of 40 rows; left out: 30 rows whose label client_labels does not name"
    ]
    data = ready(1, 0, source=sums(tmp_path / "e.jsonl"), client_val_fraction=0.5, **ANSWERS)
    assert data.describe()["rows"] == [
        "client 0: 40 of 40 rows: 19 to train on, 19 held out for its own validation, 2 held out"
    ]


def test_files_that_are_too_few_point_to_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 files for 3 clients .*set partition: own"):
        ready(3, 0, source=sums(tmp_path / "a.jsonl"), partition="files", **ANSWERS)
