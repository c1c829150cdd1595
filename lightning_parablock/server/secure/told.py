"""From which exchange the steps of the next one of a block come, with fixed members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from typing_extensions import override

from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import Key

_CURRENT = -1
"""In place of a round: what the next exchange of the block takes."""


class Scales(Protocol):
    """What exchanges of a block make their steps from."""

    def of(self, key: Key) -> Scale | None:
        """What the newest exchange of the block has told that is merged when this one is submitted; None for none."""
        ...

    def settle(self, key: Key, told: Scale | None) -> None:
        """All clients have merged an exchange, which has told this; None where no client has trained."""
        ...

    def state(self, in_flight: Mapping[Key, Scale | None]) -> list[list[Any]]:
        """For a checkpoint, with what the exchanges in flight have taken."""
        ...

    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        """Restore :meth:`state`, before what was in flight is submitted again."""
        ...


class MergedScales(Scales):
    """Those of a run with fixed members, as its rounds are merged."""

    def __init__(self) -> None:
        self._current: dict[int, Scale] = {}
        self._restored: dict[Key, Scale | None] = {}

    @override
    def of(self, key: Key) -> Scale | None:
        return self._restored.pop(key) if key in self._restored else self._current.get(key[1])

    @override
    def settle(self, key: Key, told: Scale | None) -> None:
        if told is not None:
            self._current[key[1]] = told

    @override
    def state(self, in_flight: Mapping[Key, Scale | None]) -> list[list[Any]]:
        rows = [
            *((block, _CURRENT, scale) for block, scale in self._current.items()),
            *((block, round_index, scale) for (round_index, block), scale in in_flight.items()),
        ]
        return [[block, t, *_plain(scale)] for block, t, scale in rows]

    @override
    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        for block, round_index, sum_of_logs, clients in state:
            scale = Scale(sum_of_logs, clients) if clients else None
            if round_index != _CURRENT:
                self._restored[round_index, block] = scale
            elif scale is not None:
                self._current[block] = scale


def _plain(scale: Scale | None) -> list[Any]:
    return [torch.zeros(0, dtype=torch.int32), 0] if scale is None else [scale.sum_of_logs, scale.clients]
