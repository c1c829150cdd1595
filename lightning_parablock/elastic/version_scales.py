"""The scales of secure sums by version of a block: they go with W, to joiners and from generation to generation.

An exchange makes its steps from what the newest exchange of its block has told that is merged when it is submitted. A
dropped exchange tells nothing, and leaves the scale as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import ProtocolError
from lightning_parablock.masking.scales import Scale, n_records
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.secure.told import Scales
from lightning_parablock.settings.delay import Delay

Told = tuple[Key, Scale]
"""What an exchange has told."""


class VersionScales(Scales):
    """What exchanges that have landed here have told; thread-safe.

    Args:
        n_blocks: Number of blocks.
        delay: When exchanges are merged.
    """

    def __init__(self, n_blocks: int, delay: Delay) -> None:
        self._delay = delay
        self._told: list[list[Told]] = [[] for _ in range(n_blocks)]  # of each block, oldest first
        self._lock = threading.Lock()

    @override
    def of(self, key: Key) -> Scale | None:
        merged = self._delay.newest_merged_at_submission(key[0])
        return self._newest(key[1], lambda known: known[0] <= merged)

    def at(self, key: Key) -> Scale | None:
        """The scale of the block's version after an exchange; None where no exchange has told one yet."""
        return self._newest(key[1], lambda known: known <= key)

    def land(self, key: Key, told: Scale | None) -> None:
        """An exchange has landed; it is newer than all before."""
        if told is not None:
            with self._lock:
                self._told[key[1]].append((key, told))

    def begin_with(self, scales: Iterable[Told]) -> None:
        """Forget everything, and begin with the scales of versions that others have given."""
        with self._lock:
            for told in self._told:
                told.clear()
        for key, scale in sorted(scales, key=lambda one: one[0]):
            self.land(key, scale)

    def prune(self, oldest: Callable[[int], Key]) -> None:
        """Forget what no version has any more.

        Args:
            oldest: Of a block the exchange whose version is the oldest that is kept.
        """
        with self._lock:
            for block, told in enumerate(self._told):
                if len(told) > 1:
                    first = oldest(block)
                    begin = max((i for i, (key, _) in enumerate(told) if key <= first), default=0)
                    del told[:begin]

    def _newest(self, block: int, counts: Callable[[Key], bool]) -> Scale | None:
        with self._lock:
            return next((scale for key, scale in reversed(self._told[block]) if counts(key)), None)

    @override
    def settle(self, key: Key, told: Scale | None) -> None:
        """What has landed is known by :meth:`land`."""

    @override
    def state(self, in_flight: Mapping[Key, Scale | None]) -> list[list[Any]]:
        """Nothing: a run that continues from a checkpoint begins without scales."""
        return []

    @override
    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        """See :meth:`state`."""


def as_tensor(scale: Scale | None) -> Tensor:
    """A scale as it travels: the sums of l_i, then the number of clients; that alone, 0, where there is none."""
    if scale is None:
        return torch.zeros(1, dtype=torch.int32)
    return torch.cat([scale.sum_of_logs, torch.tensor([scale.clients], dtype=torch.int32)])


def from_tensor(values: Tensor, numel: int, sender: str) -> Scale | None:
    """The scale that :func:`as_tensor` wrote, of a block with ``numel`` scalars.

    Raises:
        ProtocolError: it is something else.
    """
    is_row = values.dtype == torch.int32 and values.ndim == 1 and values.numel() > 0
    clients = int(values[-1]) if is_row else -1
    if clients < 0 or values.numel() != 1 + (n_records(numel) if clients else 0):
        raise ProtocolError(f"from {sender}: {values.dtype} of shape {list(values.shape)} is no scale of a block")
    return Scale(values[:-1].clone(), clients) if clients else None
