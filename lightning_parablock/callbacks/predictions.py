"""Predictions in a JSON Lines file: one object per row, in the order of the rows."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from typing_extensions import override

from lightning_parablock.callbacks.gather import gather_objects
from lightning_parablock.errors import ConfigurationError


class _Prediction(NamedTuple):
    """Prediction of one row; ``rows`` has several if a batch's prediction is not split by row, and none in a stream."""

    loader: int
    rows: tuple[int, ...]
    batch: int
    value: Any


class PredictionFile(BasePredictionWriter):
    """Writes predictions to a new file, each row once.

    The ranks share a prediction set as they share a validation set, and the first rank writes all rows. Where sites
    have names, each site writes a file of its own rows, and no prediction leaves the site.

    A line is ``{"row": 3, "prediction": ...}``: the row's index in the prediction set, and its part of the value that
    ``predict_step`` returned for the batch: an element of a tensor, an array or a list, or a dict of such elements. A
    prediction that cannot be split by row is written once per batch, with ``rows`` in place of ``row``; that of a
    stream, whose rows have no index, with ``batch``. ``dataloader`` is given if there are several, ``client`` if
    clients predict rows of their own.

    Args:
        path: Path of the file, or a function that returns it, called before the first prediction.

    Attributes:
        written: Path of the file and its number of rows, on a rank that has written one.
    """

    def __init__(self, path: str | Path | Callable[[], Path]) -> None:
        super().__init__("batch")
        self._path = path
        self._found: list[_Prediction] = []
        self._loaders: list[Any] = []
        self.written: tuple[Path, int] | None = None

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found, self._loaders = [], []
        if _writes(trainer):
            refuse_file(self._file(trainer))

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not self._loaders:
            self._loaders = CombinedLoader(trainer.predict_dataloaders, "sequential").flattened
        indices = (batch_indices or ()) if _has_indices(self._loaders[dataloader_idx]) else ()
        found: list[tuple[tuple[int, ...], Any]] = [(tuple(indices), prediction)]
        if (parts := _by_row(prediction, len(indices)) if indices else None) is not None:
            found = [((row,), part) for row, part in zip(indices, parts, strict=True)]
        self._found += [_Prediction(dataloader_idx, rows, batch_idx, _plain(value)) for rows, value in found]

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, self._found, self._loaders = self._found, [], []
        has_sites = bool(getattr(trainer.strategy, "site_names", ()))
        of_ranks = [found] if has_sites else gather_objects(trainer.strategy, found)
        if not _writes(trainer):
            return
        path = self._file(trainer)
        lines = _lines(of_ranks)
        with path.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        self.written = path, sum(len(one.rows) or 1 for found in of_ranks for one in found)

    def _file(self, trainer: Trainer) -> Path:
        if callable(self._path):
            return self._path()
        sites: Sequence[str] = getattr(trainer.strategy, "site_names", ())
        return file_of_site(Path(self._path), sites[trainer.global_rank] if sites else None)


def file_of_site(path: Path, site: str | None) -> Path:
    """A site's own file, ``predictions-a.jsonl`` for site a: sites may run on one machine."""
    return path if site is None else path.with_name(f"{path.stem}-{site}{path.suffix}")


def refuse_file(path: Path) -> None:
    """Refuse a file that cannot be created, before anything is predicted.

    Raises:
        ConfigurationError: the file exists, or its folder does not.
    """
    if path.exists():
        raise ConfigurationError(f"predictions: {path} exists and is not overwritten; name another file or remove it")
    if not path.parent.is_dir():
        raise ConfigurationError(f"predictions: the folder of {path} does not exist; create it or name another file")


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero or bool(getattr(trainer.strategy, "site_names", ()))


def _has_indices(loader: Any) -> bool:
    """Whether the rows of a loader have indices: for a stream, Lightning passes those of the previous loader."""
    return hasattr(getattr(loader, "batch_sampler", None), "seen_batch_indices")


def _by_row(prediction: Any, n_rows: int) -> list[Any] | None:
    """Each row's part of a prediction; None if the prediction cannot be split by row."""
    if isinstance(prediction, Mapping) and prediction:
        parts = {name: _by_row(value, n_rows) for name, value in prediction.items()}
        if any(part is None for part in parts.values()):
            return None
        return [{name: part[row] for name, part in parts.items() if part is not None} for row in range(n_rows)]
    if isinstance(prediction, (Tensor, np.ndarray)):
        return list(prediction) if prediction.ndim and len(prediction) == n_rows else None
    if isinstance(prediction, (list, tuple)) and not hasattr(prediction, "_fields"):
        return list(prediction) if len(prediction) == n_rows else None
    return None


def _plain(value: Any) -> Any:
    """The value as JSON types.

    Raises:
        ConfigurationError: the value cannot be represented in JSON.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(getattr(value, name)) for name in value._fields}  # pyright: ignore
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ConfigurationError(
        f"predictions: predict_step returned a {type(value).__name__}, which has no form in JSON; return tensors, "
        "arrays, numbers, texts, or lists and dicts of them, or write the predictions with a BasePredictionWriter"
    )


def _lines(of_ranks: Sequence[Sequence[_Prediction]]) -> list[str]:
    """One JSON object per prediction, by loader and row."""
    found = sorted(
        ((one, rank) for rank, predictions in enumerate(of_ranks) for one in predictions),
        key=lambda entry: (entry[0].loader, entry[0].rows, entry[0].batch, entry[1]),
    )
    has_loaders = any(one.loader for one, _ in found)
    # Indices are unique within a data set: a repeated index comes from two sets, or from a set that was not sharded.
    places = Counter((one.loader, one.rows or one.batch) for one, _ in found)
    has_twice = any(count > 1 for count in places.values())
    lines: list[str] = []
    for one, rank in found:
        head: dict[str, Any] = {"client": rank} if has_twice else {}
        if has_loaders:
            head["dataloader"] = one.loader
        if len(one.rows) == 1:
            head["row"] = one.rows[0]
        else:
            head |= {"rows": list(one.rows)} if one.rows else {"batch": one.batch}
        lines.append(json.dumps({**head, "prediction": one.value}, ensure_ascii=False))
    return lines
