"""Validation losses of a client, before any of them leaves it: by loader, and by label of the rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_parablock.lightning_private.facts import logged_results
from lightning_parablock.loading.shards import ShardSampler
from lightning_parablock.training.samples import samples_of

log = logging.getLogger(__name__)

MAX_LABELS = 64
"""Maximum number of labels with a figure each: more would bury the other figures in every logger."""

Sum = tuple[float, float]
"""Summed loss and number of its terms (tokens, samples)."""


class Losses:
    """Sums up one validation.

    Args:
        trainer: The trainer, whose validation loaders are ready.
        monitor: Name under which the module logs its loss, for modules whose validation_step returns none.
    """

    def __init__(self, trainer: Trainer, monitor: str) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._loaders: list[Any] = CombinedLoader(trainer.val_dataloaders, "sequential").flattened
        self._order, self._names = _labels(self._loaders[0]) if self._loaders else ([], [])
        self._of_label = torch.zeros(2, len(self._names), dtype=torch.float64)
        self._of_loader: dict[int, Tensor] = {}
        self._clients = _batches_of(self._loaders[-1], "row_clients") if self._loaders else []
        self._of_client: dict[int, Tensor] = {}

    def add(self, outputs: Any, batch: Any, batch_index: int, loader: int) -> None:
        """Add the losses of a batch.

        Args:
            outputs: Return value of ``validation_step``.
            batch: The batch.
            batch_index: Index of the batch in its loader.
            loader: Index of the loader.
        """
        found = _sums(outputs, batch, getattr(self._trainer, "lightning_module", None))
        if found is None:
            return
        self._of_loader[loader] = self._of_loader.get(loader, 0) + found.sum(dim=1)
        if loader == 0 and _by_row(outputs) and batch_index < len(self._order):
            self._of_label.index_add_(1, torch.tensor(self._order[batch_index]), found)
        if loader == len(self._loaders) - 1 and _by_row(outputs) and batch_index < len(self._clients):
            for client, sums in zip(self._clients[batch_index], found.unbind(dim=1), strict=True):
                self._of_client[client] = self._of_client.get(client, 0) + sums

    def of_labels(self) -> dict[str, Sum]:
        """Losses by label of the first loader's rows; empty if they have none, or losses are not known by row."""
        if not self._of_label.any():
            return {}
        totals, counts = self._of_label.tolist()
        return {name: (total, count) for name, total, count in zip(self._names, totals, counts, strict=True)}

    def own_of(self, hosted: Sequence[int]) -> dict[int, float | None]:
        """Mean loss of each client of this rank on its own rows.

        Args:
            hosted: Numbers of this rank's clients. If the last loader's data set has no ``row_clients``, its rows are
                those of the only client; with several clients, they belong to none.
        """
        if not self._of_client:
            return {hosted[0]: self.own() if len(hosted) == 1 else None}
        means = {client: tuple(sums.tolist()) for client, sums in self._of_client.items()}
        return {client: total / count for client, (total, count) in means.items() if count}

    def own(self) -> float | None:
        """Mean loss over the last loader; None if it is a shard of rows that all clients share, or no loss is known.

        Must be called before Lightning resets the metrics that the module has logged.
        """
        of_loader = {i: tuple(sums.tolist()) for i, sums in self._of_loader.items()} or self._logged()
        if not of_loader:
            return None
        last = max(of_loader)
        if last < len(self._loaders) and isinstance(getattr(self._loaders[last], "sampler", None), ShardSampler):
            return None
        total, count = of_loader[last]
        return total / count if count else None

    def _logged(self) -> dict[int, Sum]:
        """This client's part of the mean that the module logs under ``monitor``, by loader."""
        logged = logged_results(self._trainer)
        items = [item for item in logged if item.meta.name == self._monitor and not item.has_reset]
        return {
            item.meta.dataloader_idx or 0: (float(item.value), float(item.cumulated_batch_size))
            for item in items
            if item.is_tensor and item.meta.is_mean_reduction
        }


def _by_row(outputs: Any) -> bool:
    return isinstance(outputs, Mapping) and "loss_sums" in outputs


def _sums(outputs: Any, batch: Any, module: Any) -> Tensor | None:
    """Loss sums and their numbers of terms, shape (2, samples), or (2, 1) if only the batch's mean is known."""
    if _by_row(outputs):
        return torch.stack([outputs[name].detach().cpu().double() for name in ("loss_sums", "loss_counts")])
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    samples = samples_of(batch, module, exact=False)
    return torch.tensor([[float(loss) * samples], [samples]], dtype=torch.float64)


def _labels(loader: Any) -> tuple[list[list[int]], list[str]]:
    """Label numbers of the rows in each batch of a loader, and the labels' names; empty if there are none."""
    names: list[str] = list(getattr(getattr(loader, "dataset", None), "label_names", ()))
    if len(names) > MAX_LABELS:
        log.info("no validation loss by label: %d labels, at most %d are shown", len(names), MAX_LABELS)
        return [], []
    return _batches_of(loader, "row_labels"), names


def _batches_of(loader: Any, attribute: str) -> list[list[int]]:
    """Values of a row attribute of a data set in each batch of its loader; empty without it, or if it shuffles."""
    said: Any = getattr(getattr(loader, "dataset", None), attribute, None)
    sampler: Any = getattr(loader, "batch_sampler", None)
    if said is None or sampler is None:
        return []
    order: list[list[int]] = list(sampler)
    if order != list(sampler):
        log.info("no validation loss by %s: the validation loader shuffles", attribute)
        return []
    return [[said[index] for index in batch] for batch in order]
