"""The program of one site with this package's elastic strategy, as a user would write it, and its trace."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness.trainers import bare_trainer
from benchmarks.storm.task import STEPS_AHEAD, Job, Trace, data_of, digest, last_round, loss_of, parts
from lightning_parablock import ParaBlockStrategy


class Sleeper(pl.LightningModule):
    """The model.

    Args:
        job: Its size, and how long a step takes.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._step_s, self.parts = job.step_s, parts(job)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sleep, and a loss."""
        return loss_of(self.parts, batch[0], self._step_s)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Watch(pl.Callback):
    """Notes each exchange as it lands, and ends the fit after the round that the launcher has named.

    Args:
        job: This site's.
        trace: Where to note.
        strategy: This site's.
    """

    def __init__(self, job: Job, trace: Trace, strategy: ParaBlockStrategy) -> None:
        self._job, self._trace, self._strategy = job, trace, strategy
        self._has_begun = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning, after the strategy's own callback."""
        if not self._has_begun:
            self._has_begun = True
            self._follow()
            self._trace.note("member", round=trainer.global_step // self._job.local_steps)

    def _follow(self) -> None:
        assert self._strategy.elastic is not None
        site: Any = self._strategy.elastic.site
        transport: Any = site._transport
        before = transport.on_landed

        def note(key: tuple[int, int]) -> None:
            before(key)
            value = transport.commit_of(key)
            self._trace.note("commit", round=key[0], block=key[1], hash=digest([value]))

        transport.on_landed = note

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning, after the strategy's own callback."""
        last = last_round(self._job) if trainer.global_step % self._job.local_steps == 0 else None
        if last is not None and trainer.global_step >= (last + 1) * self._job.local_steps:
            trainer.should_stop = True


def main() -> None:
    """Train until the launcher has named the last round; the trace begins after the imports."""
    job = Job(**json.loads(sys.argv[1]))
    trace = Trace(job)
    trace.note("imported")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    strategy = ParaBlockStrategy(
        lighthouse=job.lighthouse,
        site=job.name,
        min_clients=job.min_sites,
        silence_s=job.silence_s,
        local_steps=job.local_steps,
        blocks=[rf"parts\.{index}\." for index in range(job.n_blocks)],
        topology="sharded",
    )
    watch = Watch(job, trace, strategy)
    trainer = bare_trainer(strategy, STEPS_AHEAD, [watch], default_root_dir=job.folder)
    trainer.fit(Sleeper(job), DataLoader(TensorDataset(data_of(job)), batch_size=1))
    log = [dict(record.to_json()) for record in strategy.membership_log.records]
    trace.note("done", hash=strategy.weights_sha256, steps=trainer.global_step, log=log)


if __name__ == "__main__":
    main()
