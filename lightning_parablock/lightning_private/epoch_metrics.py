"""Metrics of an epoch that all ranks reduce together, at a rank that comes when the others have logged them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,  # pyright: ignore[reportPrivateUsage]
    _ResultMetric,  # pyright: ignore[reportPrivateUsage]
    _Sync,  # pyright: ignore[reportPrivateUsage]
)
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError, ProtocolError

_REDUCTIONS = ("mean", "sum", "min", "max")
_SAME = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)


def open_metrics(trainer: Trainer) -> dict[str, Any]:
    """Which metrics of this epoch all ranks will reduce together at its end, and what those of one rank are by now.

    Lightning reduces what this rank has logged, in the order in which it has logged it. Without this, a site that joins
    within an epoch would reduce other metrics than the others, which would wait for it.

    Args:
        trainer: The trainer, in ``on_train_batch_start``.
    """
    results: Any = trainer.fit_loop.epoch_loop._results  # pyright: ignore[reportPrivateUsage]
    entries = [_described(key, item) for key, item in results.items() if _is_open(item)]
    own = [item for item in results.values() if item.meta.on_epoch and item.is_tensor and not item.has_reset]
    values = {name: _so_far(item) for item in own if not _is_open(item) for name in results._forked_name(item, False)}
    is_first_batch = trainer._logger_connector._first_loop_iter is True  # pyright: ignore[reportPrivateUsage]
    return {"is_first_batch": is_first_batch, "entries": entries, "values": values}


def expect_open_metrics(trainer: Trainer) -> None:
    """Let metrics that are read before the first batch be those of steps: those of the epoch would be a collective.

    Without this, a progress bar or a callback of a site that joins could begin a collective to which no other comes.

    Args:
        trainer: The trainer, in ``on_train_start``.
    """
    trainer._logger_connector._first_loop_iter = True  # pyright: ignore[reportPrivateUsage]


def join_open_metrics(trainer: Trainer, module: LightningModule, metrics: Mapping[str, Any], *, alike: bool) -> None:
    """Reduce at the end of the epoch that runs what the others will reduce, and in their order.

    To what they have logged and this rank has not it adds nothing; a metric that no rank logs any more has no value.
    What this rank has logged and they have not, such as in ``on_train_start``, is dropped. A metric that is each rank's
    own has the value of the other rank until this one has logged it: a callback that monitors it finds one.

    Args:
        trainer: The trainer, in ``on_train_batch_start`` of its first batch.
        module: Its module.
        metrics: From :func:`open_metrics` at another rank, at the same batch.
        alike: Whether all ranks come like this one, so that all have logged the same in ``on_train_start``.

    Raises:
        ConfigurationError: the module has no such torchmetrics object.
    """
    results: Any = trainer.fit_loop.epoch_loop._results  # pyright: ignore[reportPrivateUsage]
    # Within an epoch: else the first step that logs would drop what is open.
    trainer._logger_connector._first_loop_iter = metrics["is_first_batch"]  # pyright: ignore[reportPrivateUsage]
    wanted = {entry["key"]: entry for entry in metrics["entries"]}
    for key, item in results.items():
        if not alike and key not in wanted and _is_open(item):
            item.reset()
    for key, entry in wanted.items():
        own = results.pop(key, None)
        results[key] = _empty(entry, trainer, module) if own is None or own.has_reset else own
    for name, value in metrics["values"].items():
        trainer._logger_connector._callback_metrics.setdefault(name, value)  # pyright: ignore[reportPrivateUsage]


class _Empty(_ResultMetric):
    """An entry that this rank has not logged yet, and others have."""

    @override
    def compute(self) -> Any:
        """The value over all ranks, by the same collectives as that of any entry; None where none of them has one."""
        if not self.is_tensor:
            return super().compute()
        meta, own = self.meta, vars(self)
        value = meta.sync(own["value"].clone())
        if meta.is_mean_reduction:
            n_terms = meta.sync(own["cumulated_batch_size"].clone())
            value, has_value = value / n_terms, bool(n_terms != 0)
        else:
            has_value = meta.is_sum_reduction or bool(value != self._defaults["value"])
        self.has_reset = not has_value  # or it would be computed each time that metrics are read
        return value if has_value else None

    @override
    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        def once() -> Any:  # Lightning's warns that nothing was logged here, which is expected
            if self._computed is None:
                self._computed = compute()
            return self._computed

        return once


def _is_open(item: Any) -> bool:
    """Whether an entry of this epoch is reduced over all ranks; a torchmetrics object is when it is computed."""
    sync = item.meta.sync
    meets = (sync.should and not sync.rank_zero_only) if item.is_tensor else True
    return item.meta.on_epoch and meets and not item.has_reset


def _so_far(item: Any) -> Any:
    value = item.value.detach().clone()
    return value / item.cumulated_batch_size if item.meta.is_mean_reduction else value


def _described(key: str, item: Any) -> dict[str, Any]:
    meta = item.meta
    return {
        "key": key,
        "is_tensor": item.is_tensor,
        "should_sync": meta.sync.should,
        "reduce_fx": meta.reduce_fx.__name__,
        "is_builtin": meta.reduce_fx is getattr(builtins, meta.reduce_fx.__name__, None),
        **{name: getattr(meta, name) for name in _SAME},
    }


def _empty(entry: Mapping[str, Any], trainer: Trainer, module: LightningModule) -> Any:
    if entry["reduce_fx"] not in _REDUCTIONS:  # a peer must not choose which function is called
        raise ProtocolError(f"the other sites reduce {entry['name']!r} by {entry['reduce_fx']!r:.40}: no reduction")
    functions: Any = builtins if entry["is_builtin"] is True and entry["reduce_fx"] != "mean" else torch
    meta = _Metadata(**{name: entry[name] for name in _SAME}, reduce_fx=getattr(functions, entry["reduce_fx"]))
    meta.sync = _Sync(_should=entry["should_sync"], fn=trainer.strategy.reduce)
    item: Any = _Empty(meta, entry["is_tensor"])
    if not entry["is_tensor"]:
        item.value = _metric(module, entry)
    return item.to(trainer.strategy.root_device)


def _metric(module: LightningModule, entry: Mapping[str, Any]) -> Any:
    try:
        return module.get_submodule(entry["metric_attribute"])
    except AttributeError as error:
        raise ConfigurationError(
            f"the other sites log {entry['name']!r} over the epoch from the metric {entry['metric_attribute']!r} of "
            f"their module, and {type(module).__name__} has none of that name here; use the same module everywhere"
        ) from error
