"""The job that measures codecs beside an uncompressed run: all of them see the same deltas, visit by visit.

It takes one training run for all of them. Their commits do not reach the clients, so deltas do not answer to what a
codec has left out; for that each codec has a run of its own (``visits.py``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.codecs.low_rank import FactorsBeside
from benchmarks.codecs.visits import Residuals, fit, norm
from lightning_parablock.codecs.feedback import Coder, Residual
from lightning_parablock.codecs.low_rank import Shapes
from lightning_parablock.federation.rounds import RoundEngine
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


class Beside(Residuals):
    """Residuals of a run in which a :class:`MeanBeside` takes the place of the transport's mean.

    Args:
        codecs: By name: ``compression`` and ``settings``.

    Attributes:
        mean: That mean, once the first step has begun.
    """

    def __init__(self, codecs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self._codecs = codecs
        self.mean: MeanBeside | None = None

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        if self.mean is None:
            engine: RoundEngine = trainer.strategy.session.engine  # type: ignore[attr-defined]
            flat, transport = engine.flat, cast(Any, engine.transport)
            shapes = [[p.shape for p in flat.parameters(block)] for block in range(len(flat.blocks))]
            self.mean = MeanBeside({name: _codec(one, shapes) for name, one in self._codecs.items()})
            transport._aggregator = self.mean
        super().on_train_batch_start(trainer)


def _codec(one: Mapping[str, Any], shapes: Sequence[Shapes]) -> CodecBeside | FactorsBeside:
    if one["compression"] == "low_rank":
        return FactorsBeside(shapes, one["settings"]["rank"])
    return CodecBeside(one["compression"], one.get("settings", {}))


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`benchmarks.codecs.visits.train` without compression; ``codecs`` by name: ``compression``, ``settings``.

    ``beside`` is a row per codec, block and visit: ``residual_over_delta``, norm of what each client has left out after
    the visit over that of the visit's delta; ``missing``, norm of the difference between all commits of the run and
    all commits of the codec, over that of the former.
    """
    started_s = time.time()
    watch = Beside(plan["codecs"])
    made = fit({**plan, "compression": "none", "settings": {}}, watch)
    assert watch.mean is not None
    return made | {"beside": watch.mean.rows, "seconds": time.time() - started_s}
