"""Two ranks of which the second fails in a training step of its third round."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.strategy.worker_fit import RANK, STEPS, TASK, K, quiet_trainer, strategy
from tests.support.lightning_run import Steps, TaskModule
from tests.tasks import adamw_default


class Failing(TaskModule):
    """Breaks on rank 1."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if RANK == 1 and batch_idx == 2 * K + 1:
            raise ZeroDivisionError("the data of this client are broken")
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = quiet_trainer(strategy(), use_distributed_sampler=False)
    trainer.fit(Failing(TASK, adamw_default), torch.utils.data.DataLoader(Steps(STEPS, RANK), batch_size=1))
