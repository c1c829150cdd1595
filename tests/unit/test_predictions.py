"""The file of predictions: each row once, in order, whatever predict_step returns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_parablock.callbacks import PredictionFile
from lightning_parablock.callbacks.predictions import _Prediction
from lightning_parablock.errors import ConfigurationError


class Predicting(LightningModule):
    def __init__(self, predict: Any) -> None:
        super().__init__()
        self.predict = predict

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.predict(batch)


def predicted(path: Path, predict: Any, loaders: Any = None) -> list[dict[str, Any]]:
    loaders = loaders or DataLoader(torch.arange(5.0), batch_size=2)  # type: ignore[arg-type]
    writer = PredictionFile(path)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[writer], default_root_dir=path.parent
    )
    trainer.predict(Predicting(predict), loaders)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert writer.written == (path, sum(len(line.get("rows", [0])) for line in lines))
    return lines


class Point(NamedTuple):
    x: Tensor
    y: str


@dataclasses.dataclass
class Score:
    value: Tensor


@pytest.mark.parametrize(
    ("predict", "of_row"),
    [
        (lambda batch: 2 * batch, lambda i: 2.0 * i),
        (lambda batch: batch.bfloat16().unsqueeze(1), lambda i: [float(i)]),
        (lambda batch: batch.numpy().astype(np.int64), lambda i: i),
        (lambda batch: [f"row {int(x)} ä" for x in batch], lambda i: f"row {i} ä"),
        (lambda batch: [{"a": x, "b": None} for x in batch], lambda i: {"a": float(i), "b": None}),
        (lambda batch: {"a": batch, "b": ["x"] * len(batch)}, lambda i: {"a": float(i), "b": "x"}),
        (lambda batch: [Point(x, "y") for x in batch], lambda i: {"x": float(i), "y": "y"}),
        (lambda batch: [Score(x) for x in batch], lambda i: {"value": float(i)}),
    ],
)
def test_one_object_per_row(tmp_path: Path, predict: Any, of_row: Any) -> None:
    lines = predicted(tmp_path / "p.jsonl", predict)
    assert lines == [{"row": i, "prediction": of_row(i)} for i in range(5)]


def test_what_has_no_part_per_row_is_written_per_batch(tmp_path: Path) -> None:
    lines = predicted(tmp_path / "p.jsonl", lambda batch: batch.sum())
    assert lines == [
        {"rows": [0, 1], "prediction": 1.0},
        {"rows": [2, 3], "prediction": 5.0},
        {"row": 4, "prediction": 4.0},
    ]
    assert predicted(tmp_path / "none.jsonl", lambda batch: None)[0] == {"rows": [0, 1], "prediction": None}


def test_several_loaders_and_streams(tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.arange(3.0))

    loaders = [DataLoader(torch.arange(2.0)), DataLoader(Stream(), batch_size=2)]  # type: ignore[arg-type]
    lines = predicted(tmp_path / "p.jsonl", lambda batch: batch, loaders)
    assert [line.get("dataloader") for line in lines] == [0, 0, 1, 1]
    assert lines[2:] == [
        {"dataloader": 1, "batch": 0, "prediction": [0.0, 1.0]},
        {"dataloader": 1, "batch": 1, "prediction": [2.0]},
    ]


def test_nothing_is_overwritten_and_nothing_unknown_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="exists and is not overwritten"):
        predicted(path, lambda batch: batch)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigurationError, match=r"the folder of .* does not exist"):
        predicted(tmp_path / "no" / "p.jsonl", lambda batch: batch)
    with pytest.raises(ConfigurationError, match="predict_step returned a object, which has no form in JSON"):
        predicted(tmp_path / "q.jsonl", lambda batch: [object()] * len(batch))
    assert not (tmp_path / "q.jsonl").exists()


def finished(path: Path, rank: int, strategy: Any, found: dict[int, str]) -> PredictionFile:
    writer = PredictionFile(path)
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(seen_batch_indices=[]))
    trainer: Any = SimpleNamespace(
        is_global_zero=rank == 0, global_rank=rank, strategy=strategy, predict_dataloaders=[loader]
    )
    for row, text in found.items():
        writer.write_on_batch_end(trainer, None, [text], [row], None, 0, 0)  # type: ignore[arg-type]
    writer.on_predict_end(trainer, None)  # type: ignore[arg-type]
    return writer


def test_the_first_rank_merges_and_tells_clients_with_rows_of_their_own_apart(tmp_path: Path) -> None:
    def gathering(other: dict[int, str]) -> Any:
        more = [_Prediction(0, (row,), 0, text) for row, text in other.items()]
        return SimpleNamespace(gather_objects=lambda own: [own, more])

    finished(tmp_path / "a.jsonl", 0, gathering({0: "a", 2: "c"}), {1: "b", 3: "d"})
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == [{"row": row, "prediction": text} for row, text in enumerate("abcd")]
    finished(tmp_path / "b.jsonl", 0, gathering({0: "other"}), {0: "own"})
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert lines == [
        {"client": 0, "row": 0, "prediction": "own"},
        {"client": 1, "row": 0, "prediction": "other"},
    ]
    assert finished(tmp_path / "c.jsonl", 1, gathering({}), {0: "x"}).written is None


def test_sites_keep_their_predictions(tmp_path: Path) -> None:
    def refuse(own: Any) -> Any:
        raise AssertionError("predictions left the site")

    for rank, name in enumerate(("a", "b")):
        strategy = SimpleNamespace(site_names=("a", "b"), gather_objects=refuse)
        finished(tmp_path / "p.jsonl", rank, strategy, {0: name})
        assert json.loads((tmp_path / f"p-{name}.jsonl").read_text()) == {"row": 0, "prediction": name}
