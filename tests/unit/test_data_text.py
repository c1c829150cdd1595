from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.data.options import TextDataOptions
from lightning_parablock.data.sampler import ClientSampler
from lightning_parablock.errors import ConfigurationError, DataError
from tests.unit.tiny_text import byte_tokenizer, write_jsonl

TOKENIZER = byte_tokenizer()
ANSWERS: dict[str, Any] = {"prompt_field": "q", "answer_field": "a", "sequence_length": 16}


def sums(path: Path, n: int = 40) -> str:
    """A file of ``n`` distinct rows with the columns q, a and task."""
    rows = ({"q": f"{i}+{i}", "a": f"{2 * i}", "task": "even" if i % 4 else "odd"} for i in range(n))
    return str(write_jsonl(path, rows))


def ready(n_clients: int, client_id: int, **options: Any) -> FederatedTextDataModule:
    data = FederatedTextDataModule(n_clients=n_clients, client_id=client_id, **options)
    data.tokenizer = TOKENIZER
    data.setup("fit")
    return data


def examples(data: FederatedTextDataModule) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()) for row in data.train_set.ids}


def val_examples(data: FederatedTextDataModule) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for row in data.val_set.ids]


def order(data: FederatedTextDataModule, epoch: int = 0) -> list[int]:
    sampler: Any = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partition": "label", "label_field": "task"},
        {"partition": "dirichlet", "label_field": "task", "alpha": 5.0},
        {"partition": "label", "label_field": "task", "client_labels": [["even"], ["odd"]]},
    ],
)
def test_clients_share_the_held_out_rows_and_nothing_else(tmp_path: Path, options: dict[str, Any]) -> None:
    clients = [ready(2, i, source=sums(tmp_path / "a.jsonl"), val_fraction=0.25, **ANSWERS, **options) for i in (0, 1)]
    first, second = (examples(data) for data in clients)
    held_out = val_examples(clients[0])
    assert held_out == val_examples(clients[1])
    assert (len(first) + len(second), len(held_out)) == (30, 10)
    assert len(first | second | set(held_out)) == 40
    assert clients[0].train_fingerprint() != clients[1].train_fingerprint()


def test_held_out_rows_do_not_depend_on_the_number_of_clients(tmp_path: Path) -> None:
    source = sums(tmp_path / "a.jsonl")
    assert val_examples(ready(2, 0, source=source, **ANSWERS)) == val_examples(ready(5, 3, source=source, **ANSWERS))


def test_one_file_a_client(tmp_path: Path) -> None:
    files = [sums(tmp_path / "a.jsonl", 10), sums(tmp_path / "b.jsonl", 20)]
    data = ready(2, 1, source=files, partition="files", val_fraction=0, **ANSWERS)
    assert data.describe()["rows_per_client"] == [10, 20]
    assert len(data.train_set) == 20
    assert data.val_dataloader() == []


def test_stdlib_packages_of_two_clients() -> None:
    options: dict[str, Any] = {"partition": "label", "client_labels": [["json"], ["wsgiref", "heapq"]]}
    data = ready(2, 1, **options, val_fraction=0.2, sequence_length=64, val_examples=5)
    facts = json.loads(json.dumps(data.describe()))
    assert min(facts["rows_per_client"]) >= 3 and facts["rows_left_out"] == 0
    assert facts["source"] == "python-stdlib"
    assert facts["train"][0]["tokens"] == 64 * len(data.train_set)
    assert facts["train"][0]["sha256"] == data.train_fingerprint()
    assert facts["validation"]["examples"] == 5


def test_rows_whose_label_nobody_named_are_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options: dict[str, Any] = {"partition": "label", "label_field": "task", "client_labels": [["odd"]]}
    data = ready(1, 0, source=sums(tmp_path / "a.jsonl"), val_fraction=0, **options, **ANSWERS)
    assert data.describe()["rows_left_out"] == 30
    assert "client_labels names labels of 10 of 40 rows" in caplog.text


def test_batches_are_dicts_of_long_tensors(tmp_path: Path) -> None:
    data = ready(2, 0, source=sums(tmp_path / "a.jsonl"), batch_size=4, val_batch_size=3, val_examples=7, **ANSWERS)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_set) // 4  # drop_last
    for batch in batches:
        assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
        assert all(tensor.shape == (4, 16) and tensor.dtype == torch.long for tensor in batch.values())
    assert [len(batch["labels"]) for batch in data.val_dataloader()] == [2]  # 2 of 40 rows held out


def test_order_is_a_function_of_seed_client_and_epoch_and_not_of_global_randomness(tmp_path: Path) -> None:
    source = sums(tmp_path / "a.jsonl")
    torch.manual_seed(1)
    first = ready(2, 0, source=source, seed=3, **ANSWERS)
    state = torch.get_rng_state()
    batches = [batch["input_ids"] for batch in first.train_dataloader()]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = ready(2, 0, source=source, seed=3, **ANSWERS)
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(batches, again.train_dataloader(), strict=True))
    assert order(first) == order(again) != order(first, epoch=1)
    assert sorted(order(first, epoch=1)) == list(range(len(first.train_set)))
    assert list(ClientSampler(19, 3, 0)) != list(ClientSampler(19, 3, 1))
    assert list(ClientSampler(19, 3, 0)) != list(ClientSampler(19, 4, 0))


def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    source = sums(tmp_path / "a.jsonl", 12)
    alone = list(ready(1, 0, source=source, **ANSWERS).train_dataloader())
    helped = list(ready(1, 0, source=source, num_workers=1, **ANSWERS).train_dataloader())
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(alone, helped, strict=True))


def test_seed_comes_from_seed_everything_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert FederatedTextDataModule().seed == 7
    assert FederatedTextDataModule(seed=3).seed == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert FederatedTextDataModule().seed == 0


def test_clients_are_the_processes_of_the_attached_trainer(tmp_path: Path) -> None:
    data = FederatedTextDataModule(sums(tmp_path / "a.jsonl"), **ANSWERS)
    module = SimpleNamespace(tokenizer=TOKENIZER)
    data.trainer = SimpleNamespace(world_size=4, global_rank=2, lightning_module=module)  # type: ignore[assignment]
    data.setup("fit")
    facts = data.describe()
    assert (facts["n_clients"], facts["clients_here"], len(facts["rows_per_client"])) == (4, [2], 4)


@pytest.mark.parametrize("client_id", [0, 1])
def test_every_rank_names_the_client_whose_shard_gives_no_batch(tmp_path: Path, client_id: int) -> None:
    rows = [{"text": "x" * 100, "task": "long"}, {"text": "x", "task": "short"}]
    source = str(write_jsonl(tmp_path / "a.jsonl", rows))
    options: dict[str, Any] = {"partition": "label", "label_field": "task", "client_labels": [["long"], ["short"]]}
    with pytest.raises(DataError, match=r"empty shard: client 1 of 2 has 1 rows, which give 0 examples of 8 tokens"):
        ready(2, client_id, source=source, val_fraction=0, sequence_length=8, **options)


def test_an_empty_shard_names_the_client(tmp_path: Path) -> None:
    rows = [{"q": "1", "a": "1", "task": "one"}, *({"q": "2", "a": "2", "task": "two"} for _ in range(9))]
    source = str(write_jsonl(tmp_path / "a.jsonl", rows))
    options: dict[str, Any] = {"partition": "label", "label_field": "task", "client_labels": [["one"], ["two"]]}
    with pytest.raises(DataError, match="empty shard: client 0 of 2 has no training row"):
        ready(2, 1, source=source, val_fraction=0.9, seed=0, **options, **ANSWERS)


def test_bad_data_is_one_clear_error(tmp_path: Path) -> None:
    source = sums(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="more clients than samples: 99 clients, 38 training rows"):
        ready(99, 0, source=source, **ANSWERS)
    with pytest.raises(DataError, match="no label column 'tsak'; columns there are: q, a, task; did you mean 'task'"):
        ready(2, 0, source=source, partition="label", label_field="tsak", **ANSWERS)
    with pytest.raises(DataError, match="has no column 'text'; columns there are: q, a, task"):
        ready(2, 0, source=source)
    with pytest.raises(DataError, match="has no column 'b'"):
        ready(2, 0, source=source, template="{b}", answer_field="a")
    with pytest.raises(DataError, match="validation rows give no example of 4000 tokens"):
        ready(1, 0, source=sums(tmp_path / "b.jsonl", 4000), text_field="q", sequence_length=4000, val_fraction=0.01)


def test_rows_without_an_answer_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"q": str(i), "a": "" if i < 3 else "a"} for i in range(9)]
    ready(1, 0, source=str(write_jsonl(tmp_path / "a.jsonl", rows)), val_fraction=0, **ANSWERS)
    assert "client 0: 3 rows dropped: no answer token in them" in caplog.text


def test_test_rows_are_the_held_out_ones_or_a_source_of_their_own(tmp_path: Path) -> None:
    source, other = sums(tmp_path / "a.jsonl"), sums(tmp_path / "b.jsonl", 6)
    data = ready(1, 0, source=source, **ANSWERS)
    data.setup("test")
    assert len(data.test_dataloader()) == len(data.val_set)
    data = ready(1, 0, source=source, test_source=other, val_source=other, **ANSWERS)
    data.setup("predict")
    assert (len(data.predict_dataloader()), len(data.val_set), len(data.train_set)) == (6, 6, 40)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "drichlet"}, "did you mean 'dirichlet'"),
        ({"sequence_length": 1}, "sequence_length must be a whole number >= 2"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\)"),
        ({"alpha": 0.0}, "alpha must be a finite number > 0"),
        ({"n_clients": 2, "client_id": 2}, "client_id counts from 0"),
        ({"source": []}, "source must not be empty"),
        ({"source": "a.jsonl", "val_source": ["a.jsonl"]}, "is the training source itself"),
        ({"template": "{q}"}, "template given without answer_field"),
        ({"answer_field": "a"}, "answer_field needs a prompt"),
        ({"answer_field": "a", "prompt_field": "q", "text_field": "t"}, "exclude each other"),
        ({"answer_field": "a", "prompt_field": "q", "template": "{p}"}, "does not occur in template"),
        ({"answer_field": "a", "template": "{q}{a}"}, "shows the answer column"),
        ({"source": "a.jsonl", "partition": "label"}, "needs label_field"),
        ({"partition": "files"}, "needs local files"),
        ({"client_labels": [["http"]]}, "client_labels needs partition 'label'"),
        ({"partition": "label", "client_labels": [["http"], []]}, "at least one label for every client"),
        ({"partition": "label", "client_labels": [["http"]], "n_clients": 2}, "names 1 clients, and n_clients is 2"),
    ],
)
def test_wrong_options_fail_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FederatedTextDataModule(**options)


def test_a_run_with_another_number_of_processes_is_an_error(tmp_path: Path) -> None:
    options: dict[str, Any] = {"partition": "label", "client_labels": [["http"], ["email"]]}
    with pytest.raises(ConfigurationError, match="names 2 clients, but the run has 1"):
        _ = FederatedTextDataModule(**options).clients
    data = FederatedTextDataModule(n_clients=3)
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="n_clients=3, but the run has 2 clients"):
        _ = data.clients


def test_a_missing_tokenizer_and_a_missing_setup_say_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="set the data option tokenizer"):
        _ = FederatedTextDataModule().tokenizer
    with pytest.raises(ConfigurationError, match=r"call setup\('fit'\) first"):
        FederatedTextDataModule().train_dataloader()


def test_every_option_has_a_help_text_and_a_check() -> None:
    names = set(inspect.signature(FederatedTextDataModule.__init__).parameters) - {"self"}
    documented = inspect.getdoc(FederatedTextDataModule.__init__) or ""
    assert [name for name in sorted(names) if f"    {name}: " not in documented] == []
    assert names == set(TextDataOptions.__dataclass_fields__)
