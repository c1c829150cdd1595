"""A checkpoint that an earlier version saved resumes to the bits of the run that was never stopped.

``tests/data/format2.ckpt`` was saved by commit 1218960 at step 10 of the run below: in the middle of a round, with
exchanges in flight, kept optimizer state, residuals of a lossy codec and moments of the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_parablock import ParaBlockStrategy
from tests.support.lightning_run import TaskModule, loader_of, patterns_of, trainer_for
from tests.tasks import adamw_default, assert_same_bits, mlp_task

TASK, STEPS = mlp_task(), 22
SAVED = Path(__file__).resolve().parents[1] / "data" / "format2.ckpt"


def fit(folder: Path, **options: Any) -> dict[str, Tensor]:
    strategy = ParaBlockStrategy(
        local_steps=4,
        delay_steps=6,
        blocks=patterns_of(TASK),
        seed=3,
        server_optimizer="adam",
        compression="int8",
        block_optimizer_state="keep",
    )
    module = TaskModule(TASK, adamw_default)
    trainer_for(strategy, default_root_dir=str(folder)).fit(module, loader_of(STEPS, 0), **options)
    return module.weights()


def test_a_checkpoint_of_format_2_resumes_exactly(tmp_path: Path) -> None:
    assert_same_bits(fit(tmp_path, ckpt_path=SAVED), fit(tmp_path))
