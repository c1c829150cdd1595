"""One rank of the fits that test_buffers.py starts: BatchNorm's statistics, and a whole-numbered buffer beside them."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import partition
from tests.architectures import ARCHITECTURES
from tests.strategy.scenarios.architectures import N_RANKS, RANK, SEED, STEPS, K
from tests.support.here import SCRATCH
from tests.support.lightning_run import TaskModule, expected_weights, fit
from tests.tasks import adamw_default, assert_same_bits

TASK = ARCHITECTURES["ResNet"].task
SAVED_AT, VALIDATED_EVERY = 2 * K + 2, 7
Buffers = dict[str, Tensor]


def buffers_of(module: LightningModule) -> Buffers:
    """The inner model's buffers, named as the oracle names them."""
    assert isinstance(module, TaskModule)
    return {name: buffer.clone() for name, buffer in module.model.named_buffers()}


def oracle() -> tuple[dict[str, Tensor], dict[tuple[int, int], Buffers]]:
    """W after the run, and the buffers of each client after so many steps, which are its own all the time."""
    used = strategy("local")
    start = TASK.make_model()
    seen = {(client, 0): dict(start.named_buffers()) for client in range(N_RANKS)}

    def loss_fn(model: nn.Module, client: int, step: int) -> Tensor:
        loss = TASK.loss_fn(model, client, step)
        seen[client, step + 1] = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return loss

    names = [block.parameter_names for block in partition(start, "layers")]
    weights = expected_weights(
        TASK, used.settings, n_clients=N_RANKS, total_steps=STEPS, block_names=names, loss_fn=loss_fn
    )
    for name in seen[0, STEPS]:  # else nothing below would tell one client's from another's
        differs = not torch.equal(seen[0, STEPS][name], seen[1, STEPS][name])
        assert differs or name.endswith("num_batches_tracked")
    return weights, seen


def strategy(buffers: Literal["local", "average"]) -> ParaBlockStrategy:
    """The strategy with this rule for buffers."""
    return ParaBlockStrategy(local_steps=K, seed=SEED, exchange_timeout_s=60, buffers=buffers)


def mean(seen: dict[tuple[int, int], Buffers], step: int) -> Buffers:
    """Of two clients; what is no floating-point number is the first one's."""
    first, second = seen[0, step], seen[1, step]
    return {n: (first[n] + second[n]) / 2 if first[n].is_floating_point() else first[n] for n in first}


class Looking(Callback):
    """Notes the buffers, by the number of steps made, in training and in validation; saves twice on the way."""

    def __init__(self, name: str) -> None:
        self.path = SCRATCH / name
        self.trained: dict[int, Buffers] = {}
        self.validated: dict[int, Buffers] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.trained[trainer.global_step] = buffers_of(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == SAVED_AT:
            self.save(trainer)
            self.trained[-SAVED_AT] = buffers_of(pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.validated[trainer.global_step] = buffers_of(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 2 * VALIDATED_EVERY:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path.with_suffix(f".{trainer.global_step}.ckpt"))

    def saved(self, step: int) -> Buffers:
        """The buffers in the checkpoint of that step."""
        state = torch.load(self.path.with_suffix(f".{step}.ckpt"), weights_only=True)["state_dict"]
        module = TaskModule(TASK, adamw_default)
        module.load_state_dict(state)
        return buffers_of(module)


def fitted(buffers: Literal["local", "average"]) -> tuple[Looking, TaskModule]:
    """What was seen on the way, and the trained module."""
    look, used = Looking(buffers), strategy(buffers)
    options = {"devices": N_RANKS, "callbacks": [look], "val_check_interval": VALIDATED_EVERY}
    return look, fit(TASK, used, RANK, STEPS, **options)


def own_buffers_train(look: Looking, seen: dict[tuple[int, int], Buffers]) -> None:
    """Whatever was shown in between, each step began with the client's own."""
    assert sorted(look.trained) == [-SAVED_AT, *range(STEPS)]
    for step, buffers in look.trained.items():
        assert_same_bits(buffers, seen[RANK, abs(step)])
    assert [step for step in sorted(look.validated) if step] == list(range(VALIDATED_EVERY, STEPS, VALIDATED_EVERY))


def each_keeps_its_own() -> None:
    """buffers="local": in validation and after the end, too; a checkpoint has the first client's."""
    weights, seen = oracle()
    look, module = fitted("local")
    own_buffers_train(look, seen)
    for step, buffers in look.validated.items():
        assert_same_bits(buffers, seen[RANK, step])
    for step in (SAVED_AT, 2 * VALIDATED_EVERY):
        assert_same_bits(look.saved(step), seen[0, step])
    assert_same_bits(buffers_of(module), seen[RANK, STEPS])
    assert_same_bits(module.weights(), weights)


def the_mean_is_shown() -> None:
    """buffers="average": in validation, in checkpoints and after the end; the training does not notice."""
    weights, seen = oracle()
    look, module = fitted("average")
    own_buffers_train(look, seen)
    for step, buffers in look.validated.items():
        assert_same_bits(buffers, mean(seen, step))
    for step in (SAVED_AT, 2 * VALIDATED_EVERY):
        assert_same_bits(look.saved(step), mean(seen, step))
    assert_same_bits(buffers_of(module), mean(seen, STEPS))
    assert_same_bits(module.weights(), weights)


class SavingAlone(Callback):
    """One rank saves after an error, when the other does not: it must not wait for it."""

    def __init__(self) -> None:
        self.saved: dict[int, Buffers] = defaultdict(dict)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step, used = trainer.global_step, trainer.strategy
        assert isinstance(used, ParaBlockStrategy)
        if (step, RANK) in ((5, 0), (6, 1)):  # what a strategy knows before any other callback hears of an exception
            used.has_failed = True
            self.take(step, used)
            used.has_failed = False

    def take(self, step: int, used: ParaBlockStrategy) -> None:
        state = used.lightning_module_state_dict()
        self.saved[step] = {name.removeprefix("model."): state[name].clone() for name in state}


def who_failed_saves_its_own() -> None:
    """Had the rank that saves alone waited for the other, the bits would differ or the run would not end."""
    weights, seen = oracle()
    alone = SavingAlone()
    module = fit(TASK, strategy("average"), RANK, STEPS, devices=N_RANKS, callbacks=[alone])
    (step,) = alone.saved
    assert_same_bits({name: alone.saved[step][name] for name in seen[RANK, step]}, seen[RANK, step])
    assert_same_bits(buffers_of(module), mean(seen, STEPS))
    assert_same_bits(module.weights(), weights)


SCENARIOS: dict[str, Callable[[], None]] = {
    "local": each_keeps_its_own,
    "average": the_mean_is_shown,
    "saving alone": who_failed_saves_its_own,
}


def prepare() -> None:
    """Without Lightning's advice."""
    warnings.simplefilter("ignore")
