"""The job that measures codecs beside an uncompressed run: all of them see the same deltas, visit by visit.

It takes one training run for all of them. Their commits do not reach the clients, so deltas do not answer to what a
codec has left out; for that each codec has a run of its own (``visits.py``, ``low_rank.py``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.codecs.low_rank import FactorMean, LowRank, OtherMean, Shapes
from benchmarks.codecs.visits import fit, norm
from lightning_parablock.codecs.feedback import Coder, Residual
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregate, MeanAggregator, Received
from lightning_parablock.settings import COMPRESSIONS


class CodecBeside:
    """What a codec's clients would send of the deltas of whole blocks, and leave out.

    Args:
        compression: Name of the codec.
        settings: Its own settings.
    """

    def __init__(self, compression: str, settings: Mapping[str, Any]) -> None:
        self._coder = Coder(COMPRESSIONS[compression](**settings))
        self._left_out: dict[tuple[int, int], Tensor] = {}

    def mean(self, key: Key, received: Mapping[int, Received], part: slice) -> Tensor:
        """The mean of what is sent, shape (scalars,)."""
        total = torch.zeros(part.stop - part.start)
        for client, one in sorted(received.items()):
            delta = one.read()
            residual = Residual(self._left_out.get((client, key[1])), torch.empty_like(delta))
            total += one.weight * self._coder.as_received(delta, residual, part)
            self._left_out[client, key[1]] = residual.after
        return total / sum(one.weight for one in received.values())

    def left_out(self, client: int, block: int) -> Tensor:
        """What a client's visits of a block have left out so far."""
        return self._left_out[client, block]


class FactorsBeside(FactorMean):
    """The same of the low-rank codec."""

    def mean(self, key: Key, received: Mapping[int, Received], part: slice) -> Tensor:
        """The mean of what is sent, shape (scalars,)."""
        return self.aggregate(key, received, part).mean


class MeanBeside(MeanAggregator):
    """The mean of the deltas; the codecs beside it see them, too.

    Args:
        codecs: By name.
    """

    def __init__(self, codecs: Mapping[str, CodecBeside | FactorsBeside]) -> None:
        super().__init__()
        self._codecs = codecs
        self._visits: defaultdict[int, int] = defaultdict(int)
        self._sums: dict[tuple[str, int], Tensor] = {}
        self.rows: list[dict[str, Any]] = []

    @override
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        block = key[1]
        self._visits[block] += 1
        made = super().aggregate(key, received, part)
        whole = self._add("", block, made.mean)
        deltas = {client: norm(one.read()) for client, one in received.items()}
        for name, codec in self._codecs.items():
            arrived = self._add(name, block, codec.mean(key, received, part))
            row = {"codec": name, "block": block, "visit": self._visits[block]}
            row |= {"missing": norm(whole - arrived) / norm(whole)}
            left_out = [norm(codec.left_out(client, block)) / deltas[client] for client in deltas if deltas[client]]
            self.rows.append(row | {"residual_over_delta": left_out})
        return made

    @override
    def settle(self, round_index: int) -> None:
        for codec in self._codecs.values():
            if isinstance(codec, FactorsBeside):
                codec.settle(round_index)

    def _add(self, name: str, block: int, mean: Tensor) -> Tensor:
        total = self._sums.get((name, block))
        self._sums[name, block] = mean.clone() if total is None else total.add_(mean)
        return self._sums[name, block]


def _codec(one: Mapping[str, Any], shapes: Shapes, seed: int) -> CodecBeside | FactorsBeside:
    if "low_rank" in one:
        return FactorsBeside(shapes, LowRank(**one["low_rank"]), seed)
    return CodecBeside(one["compression"], one.get("settings", {}))


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`benchmarks.codecs.visits.train` without compression; ``codecs`` by name: ``compression`` and
    ``settings``, or ``low_rank``, settings of :class:`LowRank`.

    ``beside`` is a row per codec, block and visit: ``residual_over_delta``, norm of what each client has left out after
    the visit over that of the visit's delta; ``missing``, norm of the difference between all commits of the run and
    all commits of the codec, over that of the former.
    """
    started_s = time.time()
    codecs, seed = plan["codecs"], plan["seed"]
    watch = OtherMean(lambda shapes: MeanBeside({name: _codec(one, shapes, seed) for name, one in codecs.items()}))
    made = fit({**plan, "compression": "none", "settings": {}}, watch)
    return made | {"beside": watch.mean.rows, "seconds": time.time() - started_s}
