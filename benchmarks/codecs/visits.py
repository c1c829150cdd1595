"""The job of bench_codecs that measures residuals: what error feedback has kept back, visit by visit of each block.

Two clients on one process train SmolLM2, cut to its first layers, on GSM8K; the network changes no bit.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.harness.gsm8k import BATCH_SIZE, N_CLIENTS, SIZES, data_options
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.harness.trainers import SILENT
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.models import CausalLM
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import COMPRESSIONS


class Residuals(pl.Callback):
    """Norms of deltas and of what earlier exchanges of the block left out, for each round in flight.

    Attributes:
        rows: One per client and round, see :func:`train`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._visits: Counter[int] = Counter()
        self._seen: set[int] = set()

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        engine: RoundEngine = trainer.strategy.session.engine  # type: ignore[attr-defined]
        for round_index, flight in engine.flights.items():
            if round_index in self._seen:
                continue
            self._seen.add(round_index)
            for block, cohort in flight.work.items():
                self._visits[block] += 1
                for client in cohort:
                    row = {"round": round_index, "block": block, "visit": self._visits[block], "client": client}
                    self.rows.append(row | self._facts(round_index, client, flight.uploads[client]))

    def _facts(self, round_index: int, client: int, upload: Upload) -> dict[str, Any]:
        del round_index, client
        before = upload.residual.before if upload.residual is not None else None
        return {"delta": norm(upload.delta), "residual": norm(before)}


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`fit`, with the residuals of a codec."""
    return fit(plan, Residuals())


def fit(plan: Mapping[str, Any], watch: Residuals) -> dict[str, Any]:
    """Run one fit with both clients on this process.

    Args:
        plan: ``size`` (key of SIZES), ``visits`` of each block, ``seed``, ``train`` and ``test``; ``compression``, a
            name, and ``settings``, its own.
        watch: Keeps the rows.

    Returns:
        ``rows``: for each client and round but the last ``round``, ``block``, ``visit`` (from 1), ``client``,
        ``delta`` (norm) and ``residual`` (norm of what the client has left out of the block before); ``server``: norms
        of the server's residual by block, at the end; ``held_out_loss`` of the committed model, in nats per token;
        ``seconds``.
    """
    torch.set_num_threads(1)
    size = SIZES[plan["size"]]
    n_rounds = plan["visits"] * size.blocks
    strategy = ParaBlockStrategy(
        blocks=size.blocks,
        local_steps=size.local_steps,
        clients=N_CLIENTS,
        max_rounds=n_rounds,
        compression=COMPRESSIONS[plan["compression"]](**plan["settings"]),
        seed=plan["seed"],
    )
    module = CausalLM(PACKAGE, layers=size.layers, learning_rate=size.learning_rate)
    data = FederatedTextDataModule(
        **data_options(plan["train"], plan["test"]),
        val_examples=size.val_examples,
        train_examples=n_rounds * size.local_steps * BATCH_SIZE * N_CLIENTS,
        sequence_length=size.sequence_length,
        batch_size=BATCH_SIZE,
        seed=plan["seed"],
    )
    started_s = time.time()
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[watch],
        **SILENT,
    )
    trainer.fit(module, data)
    server = [
        {"block": piece.block, "residual": norm(piece.values)}
        for piece in strategy.session.engine.transport.server_state()
        if piece.name == "residual"
    ]
    judge = pl.Trainer(accelerator="cpu", devices=1, **SILENT)
    loss = judge.validate(module, data, verbose=False)[0]["val_loss"]
    return {"rows": watch.rows, "server": server, "held_out_loss": loss, "seconds": time.time() - started_s}


def residual_over_delta(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Norm of the residual over the norm of the delta it is added to, the mean over clients and blocks, by visit."""
    by_visit: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        by_visit[row["visit"]].append(row["residual"] / row["delta"] if row["delta"] else math.nan)
    return [fmean(by_visit[visit]) for visit in sorted(by_visit)]


def norm(values: Tensor | None) -> float:
    """Euclidean norm, summed in float64; 0 for none."""
    return 0.0 if values is None else float(torch.linalg.vector_norm(values, dtype=torch.float64))
