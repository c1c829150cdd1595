"""A loss that is not a number, in a fit on one process: what a skipped round leaves behind, and how a run stops."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError, NonFiniteError
from tests.strategy.test_turns_alone import Net, Rows
from tests.strategy.test_turns_alone import fit as fit_turns
from tests.support.lightning_run import TaskModule, expected_weights, fit, loader_of, patterns_of, trainer_for
from tests.tasks import Task, adamw_default, assert_same_bits, mlp_task, poisoned_task

K, STEPS = 4, 30
POISONED = ((0, 6), (0, 17), (0, STEPS - 1))
TASK = poisoned_task(mlp_task(), *POISONED)
SKIPPED = [1, 4, 7]


def strategy_for(**changes: Any) -> ParaBlockStrategy:
    options = {"local_steps": K, "blocks": patterns_of(TASK), "seed": 3, "block_order": "random", **changes}
    return ParaBlockStrategy(**{"nonfinite_delta": "skip", **options})


@pytest.mark.parametrize("block_optimizer_state", ["reset", "offload", "keep"])
@pytest.mark.parametrize("delay_steps", [0, K, K + 2])
def test_the_optimizers_state_of_a_skipped_round_is_dropped(block_optimizer_state: str, delay_steps: int) -> None:
    """Else a block would never recover from moments that are not numbers."""
    strategy = strategy_for(block_optimizer_state=block_optimizer_state, delay_steps=delay_steps)
    weights = fit(TASK, strategy, 0, STEPS).weights()
    assert_same_bits(weights, expected_weights(TASK, strategy.settings, n_clients=1, total_steps=STEPS))
    assert [record.round for record in strategy.round_records if record.nonfinite] == SKIPPED
    assert all(bool(value.isfinite().all()) for value in weights.values())


class Normed(TaskModule):
    """Batches have running statistics: those of the poisoned ones are not numbers."""

    def __init__(self, task: Task = TASK) -> None:
        super().__init__(task, adamw_default)
        self.norm = nn.BatchNorm1d(4, affine=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        client, step = (int(part) for part in batch)
        inputs, targets = self.task.batch(client, step)
        poisoned = getattr(self.task, "poisoned", ())
        inputs = self.norm(inputs * float("nan") if (client, step) in poisoned else inputs)
        return self.task.loss(self.model, (inputs, targets))


def test_buffers_are_those_from_before_the_skipped_round() -> None:
    module = fit(TASK, strategy_for(), 0, STEPS, module=Normed())
    alone = nn.BatchNorm1d(4, affine=False)
    for step in range(STEPS):
        if step // K not in SKIPPED:
            alone(TASK.batch(0, step)[0])
    for name, buffer in alone.named_buffers():
        assert torch.equal(module.norm.get_buffer(name), buffer), name
    assert float(module.norm.get_buffer("num_batches_tracked")) == STEPS - 2 * K - STEPS % K


@pytest.mark.parametrize("step", [5, 7, 8])
def test_a_run_resumed_in_a_round_that_will_be_skipped_has_the_same_bits(tmp_path: Path, step: int) -> None:
    """Before the loss that is not a number, after it, and after the round."""
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    whole = fit(TASK, strategy_for(), 0, STEPS, module=Normed(), callbacks=[saving], **options)
    resumed = Normed()
    trainer_for(strategy_for(), **options).fit(
        resumed, loader_of(STEPS, 0), ckpt_path=str(tmp_path / f"step={step}.ckpt"), weights_only=True
    )
    assert_same_bits(resumed.weights(), whole.weights())
    for name, buffer in whole.norm.named_buffers():
        assert torch.equal(resumed.norm.get_buffer(name), buffer), name


def test_by_default_the_run_stops_and_leaves_the_model_from_before(tmp_path: Path) -> None:
    module = TaskModule(TASK, adamw_default)
    strategy = strategy_for(nonfinite_delta="stop")
    with pytest.raises(NonFiniteError, match=r"round 1, block .*: the delta of client 0 contains NaN or infinity"):
        fit(TASK, strategy, 0, STEPS, module=module, default_root_dir=tmp_path)
    (left,) = tmp_path.glob("*.ckpt")
    weights = torch.load(left, weights_only=True)["state_dict"]
    assert weights and all(bool(value.isfinite().all()) for value in weights.values())


def test_a_stopped_run_is_continued_with_skip(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    with pytest.raises(NonFiniteError):
        fit(TASK, strategy_for(nonfinite_delta="stop"), 0, STEPS, callbacks=[saving], **options)
    module, strategy = TaskModule(TASK, adamw_default), strategy_for()
    trainer_for(strategy, **options).fit(
        module, loader_of(STEPS, 0), ckpt_path=str(tmp_path / f"step={K}.ckpt"), weights_only=True
    )
    expected = expected_weights(TASK, strategy.settings, n_clients=1, total_steps=STEPS)
    assert_same_bits(module.weights(), expected)


class PoisonedRows(Rows):
    """Those of client 1 are not numbers."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index) * (float("nan") if self.client == 1 else 1.0)


class PoisonedNet(Net):
    def client_dataloader(self, client: int) -> Any:
        return DataLoader(PoisonedRows(client), batch_size=2)


def test_where_clients_take_turns_the_others_do_not_notice() -> None:
    module = PoisonedNet()
    trainer = fit_turns(module, clients=3, nonfinite_delta="skip", max_rounds=6, trainer={"max_epochs": -1})
    strategy = trainer.strategy
    assert isinstance(strategy, ParaBlockStrategy)
    skipped = [(record.round, record.client) for record in strategy.round_records if record.nonfinite]
    assert skipped == [(t, 1) for t in range(6)]
    for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        assert bool(value.isfinite().all()), name


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"nonfinite_delta='ignore' is not known; choose from 'stop', 'skip'"):
        strategy_for(nonfinite_delta="ignore")
