"""One rank of the fits that test_outside.py starts: frozen parameters that a module changes by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_parablock.errors import DivergenceError
from tests.strategy.scenarios.toys import BATCHES, EPOCHS, N_RANKS, RANK, TASK, Do, on_all, oracle, run, strategy
from tests.strategy.test_outside import Teacher
from tests.support.here import SCRATCH
from tests.support.lightning_run import TaskModule, loader_of, trainer_for
from tests.support.scenarios import Scenario, spoiling
from tests.tasks import adamw_default, assert_same_bits


def teacher_of(module: Teacher) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.teacher.named_parameters()}


def blob(values: dict[str, Tensor]) -> list[bytes]:
    return [value.numpy().tobytes() for value in values.values()]


def local() -> None:
    """Each client keeps its own, the weights are those of the oracle, and a checkpoint has the first client's."""
    saving = ModelCheckpoint(SCRATCH / "local", every_n_train_steps=1, save_last=True)
    module = Teacher()
    run(module, enable_checkpointing=True, callbacks=[saving])
    assert_same_bits(module.weights(), oracle())
    everyone = on_all(blob(teacher_of(module)))
    assert everyone[0] != everyone[1]
    saved = torch.load(SCRATCH / "local" / "last.ckpt", weights_only=True)["state_dict"]
    first = [saved[f"teacher.{name}"].numpy().tobytes() for name in teacher_of(module)]
    assert first == everyone[0]


def average() -> None:
    """The mean is shown where the committed model is, and training goes on with each client's own."""
    shown: list[dict[str, Tensor]] = []

    def look(trainer: Any, module: Teacher) -> None:
        shown.append(teacher_of(module))

    plain, module = Teacher(), Teacher()
    run(plain)
    own = on_all(teacher_of(plain))
    run(module, used=strategy(buffers="average"), callbacks=[Do(on_validation_epoch_end=look)])
    assert_same_bits(module.weights(), oracle())
    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    assert_same_bits(teacher_of(module), mean)
    everyone = on_all([blob(values) for values in shown])
    assert len(shown) == 1 + EPOCHS and everyone[0] == everyone[1]


def resumed(name: str, **options: Any) -> Callable[[], None]:
    """Stopped in the middle of a round and resumed: the same bits in the weights and in each client's teacher."""

    def scenario() -> None:
        saving = ModelCheckpoint(SCRATCH / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        whole, again = Teacher(), Teacher()
        chosen: dict[str, Any] = {"enable_checkpointing": True, "val_check_interval": 3}
        run(whole, used=strategy(**options), callbacks=[saving], **chosen)
        for step in (6, 9):
            again = Teacher()
            trainer_run(again, SCRATCH / name / f"step={step}.ckpt", strategy(**options), **chosen)
            assert_same_bits(again.weights(), whole.weights())
            assert_same_bits(teacher_of(again), teacher_of(whole))

    return scenario


def trainer_run(module: Teacher, path: Path, used: Any, **options: Any) -> None:
    trainer = trainer_for(used, devices=N_RANKS, max_epochs=EPOCHS, default_root_dir=str(SCRATCH), **options)
    trainer.fit(module, loader_of(BATCHES, RANK), loader_of(3, RANK), ckpt_path=str(path), weights_only=True)


class Clamping(TaskModule):
    """Writes into what is not being trained, differently on each client."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.model[0].bias.data[0] = RANK  # type: ignore[union-attr, index, operator]


@spoiling
def writes_into_a_block() -> None:
    """Threads of a run that has failed are left."""
    try:
        run(Clamping(TASK, adamw_default))
    except DivergenceError as error:
        assert "in block '^model" in str(error) and "does a hook of the module" in str(error)
    else:
        raise AssertionError("it was not noticed")


SCENARIOS: dict[str, Scenario] = {
    "local": local,
    "average": average,
    "resumed": resumed("resumed"),
    "resumed, average": resumed("average", buffers="average"),
    "a hook that writes into a block": writes_into_a_block,
}
