"""torchmetrics in a module: without a default process group they would count this site's data alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchmetrics import Metric

from lightning_parablock.strategy.elastic_group import ElasticGroup


def sync_metrics(module: nn.Module, group: ElasticGroup) -> Callable[[], None]:
    """Let every metric of a module gather its state over the sites of a group, unless the user has said otherwise.

    Returns:
        What undoes it: the module may then be evaluated alone, or trained with another strategy.
    """
    found: list[Any] = [part for part in module.modules() if isinstance(part, Metric)]
    own = [metric for metric in found if metric.dist_sync_fn is None]
    before = [metric.distributed_available_fn for metric in own]
    for metric in own:
        metric.dist_sync_fn, metric.distributed_available_fn = group.gather_tensors, _always

    def undo() -> None:
        for metric, available in zip(own, before, strict=True):
            metric.dist_sync_fn, metric.distributed_available_fn = None, available

    return undo


def _always() -> bool:
    return True
