"""What a module tells of one client: where sums are secure, it stays at the client's site.

Lightning reduces what ``self.log(..., sync_dist=True)`` notes through the strategy, and torchmetrics gather the states
of their objects by themselves. Both would show every other site the figure of each. So each site keeps its own: it
logs it, and its callbacks monitor it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchmetrics import Metric

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.server.aggregations import Aggregation, SecureAggregation

log = logging.getLogger(__name__)


class OwnFigures:
    """Keeps the figures of a module at its site.

    Args:
        aggregation: How deltas become their mean; figures stay where sums are secure.
    """

    def __init__(self, aggregation: Aggregation) -> None:
        self._stay = isinstance(aggregation, SecureAggregation)
        self._is_said = self._is_vote = False

    def keep(self) -> bool:
        """Whether what is to be reduced over all sites stays as it is; says so once."""
        if not self._stay or self._is_vote:
            return False
        self._say()
        return True

    @contextmanager
    def vote(self) -> Generator[None]:
        """Until the end of the block: what is reduced are decisions of callbacks, one bit of each site."""
        before, self._is_vote = self._is_vote, True
        try:
            yield
        finally:
            self._is_vote = before

    def refuse_to_gather(self) -> None:
        """Refuse to hand a tensor of the module to the other sites.

        Raises:
            ConfigurationError: sums are secure.
        """
        if self._stay:
            raise ConfigurationError(
                "self.all_gather with aggregation='secure' is not supported: every site would receive the tensor of "
                "each; work on this site's own, or log it, which keeps it here"
            )

    def keep_metrics(self, module: nn.Module) -> None:
        """Where sums are secure, let the torchmetrics objects of a module count this site's data alone; else undo that.

        When the fit has ended its process group is still open, and hooks and scripts compute what a module has counted:
        the objects stay alone. The next fit or evaluation with the module undoes it if its sums are not secure, but a
        strategy of another package does not know of it.
        """
        found: list[Any] = [part for part in module.modules() if isinstance(part, Metric)]
        for metric in found:
            available = metric.distributed_available_fn
            before = available.before if isinstance(available, _Never) else available
            metric.distributed_available_fn = _Never(before) if self._stay else before
        if self._stay and found:
            self._say()

    def _say(self) -> None:
        if not self._is_said:
            self._is_said = True
            log.warning(
                "parablock: with aggregation='secure' metrics stay at their site: sync_dist=True changes nothing, and "
                "what is logged and monitored here are this site's own values"
            )


@dataclass(frozen=True)
class _Never:
    """Says that there are no other processes from which a metric could gather.

    Attributes:
        before: What the metric asked before.
    """

    before: Callable[[], bool]

    def __call__(self) -> bool:
        return False
