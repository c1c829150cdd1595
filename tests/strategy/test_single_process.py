"""``Trainer(strategy=ParaBlockStrategy(...), devices=1)`` without any launcher: what one client can show."""

from __future__ import annotations

import csv
import gc
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.federation.schedule import block_of_round
from tests.support.lightning_run import (
    TaskModule,
    expected_weights,
    fit,
    inner_block_names,
    loader_of,
    patterns_of,
    trainer_for,
)
from tests.tasks import Task, adamw_default, assert_same_bits, mlp_task, transformer_task

MLP = mlp_task()
K = 4


def strategy_for(task: Task = MLP, **changes: Any) -> ParaBlockStrategy:
    return ParaBlockStrategy(**{"local_steps": K, "blocks": patterns_of(task), "seed": 3, **changes})


def expected(strategy: ParaBlockStrategy, total_steps: int, task: Task = MLP, **options: Any) -> dict[str, Tensor]:
    return expected_weights(task, strategy.settings, n_clients=1, total_steps=total_steps, **options)


@pytest.mark.parametrize("delay_steps", [0, 3, K, K + 2, 2 * K])
def test_one_process_equals_the_oracle(delay_steps: int) -> None:
    strategy = strategy_for(delay_steps=delay_steps, block_order="random", server_optimizer="nesterov")
    module = fit(MLP, strategy, 0, 30)
    assert_same_bits(module.weights(), expected(strategy, 30))


LOCAL_CHOICES: dict[str, dict[str, Any]] = {
    "offload": {"block_optimizer_state": "offload"},
    "keep": {"block_optimizer_state": "keep"},
    "warm-up": {"local_warmup_steps": 3},
    "warm-up longer than a round": {"local_warmup_steps": K + 2},
    "proximal": {"proximal_mu": 0.3},
    "all": {"block_optimizer_state": "keep", "local_warmup_steps": 2, "proximal_mu": 0.3},
}


@pytest.mark.parametrize("choice", LOCAL_CHOICES)
@pytest.mark.parametrize("delay_steps", [0, K, K + 2])
def test_choices_of_the_local_steps_equal_the_oracle(choice: str, delay_steps: int) -> None:
    options = {"delay_steps": delay_steps, "block_order": "random", "in_flight_value": "anchor"}
    strategy, plain = strategy_for(**options, **LOCAL_CHOICES[choice]), strategy_for(**options)
    module = fit(MLP, strategy, 0, 30)
    assert_same_bits(module.weights(), expected(strategy, 30))
    with pytest.raises(AssertionError):  # the choice makes a difference
        assert_same_bits(module.weights(), expected(plain, 30))
    (group,) = module.trainer.optimizers[0].param_groups
    assert group["lr"] == adamw_default(list(module.parameters())).param_groups[0]["lr"]


@pytest.mark.parametrize("scale", [1024.0, 65536.0])
def test_the_proximal_term_weighs_as_much_where_gradients_are_scaled(scale: float) -> None:
    """In 16-mixed gradients are multiplied until the optimizer's step; the way from the round's start is not."""
    moved: dict[tuple[float, float], float] = {}
    for mu, start in itertools.product((0.0, 5.0), (1.0, scale)):
        scaler = torch.amp.GradScaler("cpu", init_scale=start)  # pyright: ignore[reportPrivateImportUsage]
        module = TaskModule(MLP, lambda parameters: torch.optim.SGD(parameters, lr=0.05))
        before = module.weights()
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)  # type: ignore[arg-type]
        fit(MLP, strategy_for(delay_steps=0, proximal_mu=mu, local_steps=8), 0, 8, module=module, plugins=[precision])
        moved[mu, start] = sum(float((v - before[n]).square().sum()) for n, v in module.weights().items()) ** 0.5
    assert moved[0.0, scale] == pytest.approx(moved[0.0, 1.0], rel=0.05)
    assert moved[5.0, scale] == pytest.approx(moved[5.0, 1.0], rel=0.05)
    assert moved[5.0, scale] < 0.8 * moved[0.0, scale]


def test_the_proximal_term_is_clipped_with_the_gradient() -> None:
    """The way from the round's start counts a million times: what is left after clipping has its direction."""
    strategy = strategy_for(delay_steps=0, proximal_mu=1e6, local_steps=2)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    module = TaskModule(MLP, sgd)
    start = module.weights()
    fit(MLP, strategy, 0, 2, module=module, gradient_clip_val=0.5)
    # The first step goes half a unit times lr away, the second as far back.
    assert all(torch.allclose(value, start[name], atol=1e-5) for name, value in module.weights().items())
    assert any(not torch.equal(value, start[name]) for name, value in module.weights().items())


def test_the_preset_by_name_without_options() -> None:
    task = transformer_task(tied=True)
    module = fit(task, "parablock", 0, 40)
    strategy = module.trainer.strategy
    assert isinstance(strategy, ParaBlockStrategy)
    assert [block.name for block in strategy.blocks] == ["embedding", "layers.0", "layers.1", "layers.2+head"]
    names = inner_block_names(strategy.blocks)
    assert_same_bits(module.weights(), expected(strategy, 40, task, block_names=names))


def test_the_seed_is_the_one_of_seed_everything_unless_given() -> None:
    seed_everything(11, verbose=False)
    orders = {seed: [block_of_round("shuffle", 3, t, seed) for t in range(8)] for seed in (5, 11)}
    assert orders[5] != orders[11]
    for given, used in ((None, 11), (5, 5)):
        strategy = strategy_for(seed=given)
        fit(MLP, strategy, 0, 30)
        assert strategy.settings.seed == used
        index = {block.name: i for i, block in enumerate(strategy.blocks)}
        assert [index[record.block] for record in strategy.round_records] == orders[used]


# What is not in the block does not move, by one bit, during local steps.


def adamw_with_decay(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.5)


def momentum_sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True)


class Guarded(TaskModule):
    """Compares all parameters before and after each optimizer step."""

    moved: list[set[str]]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        # A gradient of zero still moves a parameter, by weight decay and momentum; only None does not.
        optimizer.zero_grad(set_to_none=False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        before = self.weights()
        super().optimizer_step(*args, **kwargs)
        after = self.weights()
        self.moved.append({name for name in before if not torch.equal(before[name], after[name])})


@pytest.mark.parametrize("make_optimizer", [adamw_with_decay, momentum_sgd])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_local_steps_move_the_block_and_not_one_bit_else(
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer], accumulate: int
) -> None:
    task = transformer_task(tied=True)
    module = Guarded(task, make_optimizer)
    module.moved = []
    strategy = strategy_for(task, delay_steps=K + 2, block_order="random")
    fit(task, strategy, 0, 30 * accumulate, module=module, accumulate_grad_batches=accumulate)
    assert len(module.moved) == 30
    names = inner_block_names(strategy.blocks)
    for step, moved in enumerate(module.moved):
        block = names[block_of_round("random", len(names), step // K, 3)]
        assert moved <= set(block), f"step {step} moved something else"
        assert moved, f"step {step} moved nothing"


def test_the_optimizers_state_of_a_block_is_dropped_when_it_is_left() -> None:
    sizes: list[tuple[int, set[int]]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            (optimizer,) = trainer.optimizers
            sizes.append((trainer.global_step, {id(p) for p, state in optimizer.state.items() if state}))

    strategy = strategy_for(block_order="sequential")
    module = fit(MLP, strategy, 0, 14, callbacks=[Look()])
    parameters = dict(module.model.named_parameters())
    blocks = [{id(parameters[name]) for name in names} for names in inner_block_names(strategy.blocks)]
    for step, held in sizes:
        assert held == (set() if step % K == 0 else blocks[step // K % 3])
    assert not any(module.trainer.optimizers[0].state.values()), "state was left behind"


# What the user gave comes back.


def flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("unmatched", ["error", "freeze"])
def test_requires_grad_flags_are_given_back(unmatched: str) -> None:
    module = TaskModule(MLP, adamw_default)
    if unmatched == "error":
        module.model[0].requires_grad_(False)
    before, start = flags(module), module.weights()
    fit(MLP, strategy_for(blocks=[r"\.2\.", r"\.4\."], unmatched=unmatched), 0, 14, module=module)
    assert flags(module) == before
    assert all(parameter.grad is None for parameter in module.parameters())
    still = {name for name, value in module.weights().items() if torch.equal(value, start[name])}
    assert still == {"0.weight", "0.bias"}


@pytest.mark.parametrize("unmatched", ["error", "freeze"])
def test_requires_grad_flags_are_given_back_after_an_error(unmatched: str) -> None:
    class Failing(TaskModule):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 6:
                raise ArithmeticError("bad batch")
            return super().training_step(batch, batch_idx)

    module = Failing(MLP, adamw_default)
    blocks = patterns_of(MLP) if unmatched == "error" else [r"\.2\.", r"\.4\."]
    with pytest.raises(ArithmeticError, match="bad batch"):
        fit(MLP, strategy_for(blocks=blocks, unmatched=unmatched), 0, 14, module=module)
    assert set(flags(module).values()) == {True}


def test_the_optimizers_groups_and_schedule_stay() -> None:
    class Scheduled(TaskModule):
        rates: list[float]

        def configure_optimizers(self) -> Any:
            first, *others = self.parameters()
            groups = [{"params": [first], "lr": 0.1}, {"params": others}]
            optimizer = torch.optim.SGD(groups, lr=0.05)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = fit(MLP, strategy_for(), 0, 14, module=Scheduled(MLP, adamw_default))
    (optimizer,) = module.trainer.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 5]


# Again, and around it.


@pytest.mark.parametrize("server_optimizer", ["sgd", "nesterov"])
def test_a_trainer_can_fit_twice(server_optimizer: Any) -> None:
    """The second fit begins with round 0 and without the server's momentum."""
    strategy = strategy_for(delay_steps=K + 2, server_optimizer=server_optimizer)
    module = TaskModule(MLP, adamw_default)
    trainer = trainer_for(strategy)
    trainer.fit(module, loader_of(14, 0))
    middle = module.weights()
    assert_same_bits(middle, expected(strategy, 14))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader_of(18, 0))
    continued = Task("continued", lambda: load(MLP, middle), MLP.loss, MLP.draw_batch, MLP.block_names)
    assert_same_bits(module.weights(), expected(strategy, 18, continued))
    assert [record.round for record in strategy.round_records] == list(range(5))


def load(task: Task, weights: dict[str, Tensor]) -> nn.Module:
    model = task.make_model()
    model.load_state_dict(weights)
    return model


def test_a_fit_that_failed_between_step_and_batch_end_leaves_no_step_for_the_next_one() -> None:
    class FailsOnce(TaskModule):
        failed = False

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            if not self.failed:
                self.failed = True
                raise ArithmeticError("schedule")

    strategy, module = strategy_for(), FailsOnce(MLP, adamw_default)
    trainer = trainer_for(strategy, accumulate_grad_batches=2)
    with pytest.raises(ArithmeticError, match="schedule"):
        trainer.fit(module, loader_of(16, 0))
    start = module.weights()
    trainer.fit(module, loader_of(16, 0))
    assert [record.steps for record in strategy.round_records] == [K, K]
    continued = Task("continued", lambda: load(MLP, start), MLP.loss, MLP.draw_batch, MLP.block_names)

    def two_batches(model: nn.Module, client: int, step: int) -> Tensor:
        return MLP.loss_fn(model, client, 2 * step) / 2 + MLP.loss_fn(model, client, 2 * step + 1) / 2

    assert_same_bits(module.weights(), expected(strategy, 8, continued, loss_fn=two_batches))


@pytest.mark.parametrize("place", ["training_step", "validation_step"])
def test_a_fit_after_one_that_failed_starts_from_the_weights_that_are_there(place: str) -> None:
    class FailsOnce(TaskModule):
        failed = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.fail_in("training_step")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.fail_in("validation_step")
            super().validation_step(batch, batch_idx)

        def fail_in(self, here: str) -> None:
            if here == place and self.global_step == 6 and not self.failed:
                self.failed = True
                raise ArithmeticError("once")

    seen: list[dict[str, Tensor]] = []

    class Look(Callback):
        def on_sanity_check_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.weights())

        def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.sanity_checking:
                seen.append(pl_module.weights())

    strategy, module = strategy_for(), FailsOnce(MLP, adamw_default)
    trainer = trainer_for(strategy, callbacks=[Look()], val_check_interval=2, num_sanity_val_steps=1)
    with pytest.raises(ArithmeticError, match="once"):
        trainer.fit(module, loader_of(14, 0), loader_of(3, 0))
    start = module.weights()
    seen.clear()
    trainer.fit(module, loader_of(14, 0), loader_of(3, 0))
    assert len(seen) == 2
    for weights in seen:
        assert_same_bits(weights, start)
    continued = Task("continued", lambda: load(MLP, start), MLP.loss, MLP.draw_batch, MLP.block_names)
    assert_same_bits(module.weights(), expected(strategy, 14, continued))


def test_validate_test_and_predict_work_and_train_nothing() -> None:
    class Full(TaskModule):
        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

        def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.task.loss_fn(self.model, int(batch[0]), int(batch[1]))

    strategy, module = strategy_for(), Full(MLP, adamw_default)
    trainer = trainer_for(strategy)
    start = module.weights()
    (before,) = trainer.validate(module, loader_of(3, 0), verbose=False)
    trainer.test(module, loader_of(3, 0), verbose=False)
    predicted = trainer.predict(module, loader_of(3, 0))
    assert_same_bits(module.weights(), start)
    assert predicted is not None and len(predicted) == 3
    trainer.fit(module, loader_of(14, 0))
    (after,) = trainer.validate(module, loader_of(3, 0), verbose=False)
    assert after["val_loss"] < before["val_loss"]
    assert_same_bits(module.weights(), expected(strategy, 14))


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_sigterm_ends_an_evaluation_at_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    class Struck(TaskModule):
        n_steps = 0

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.n_steps += 1
            signal.raise_signal(signal.SIGTERM)

        test_step = predict_step = validation_step

    before, module = signal.getsignal(signal.SIGTERM), Struck(MLP, adamw_default)
    with pytest.raises(SIGTERMException) as caught:
        getattr(trainer_for(strategy_for()), name)(module, loader_of(3, 0))
    assert (caught.value.code, module.n_steps) == (143, 1)
    assert f"SIGTERM: {name} ends here" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


def test_round_metrics_go_to_the_callback_metrics_and_the_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    strategy = strategy_for(delay_steps=K)
    module = fit(MLP, strategy, 0, 30, logger=logger, log_every_n_steps=1000)
    found = module.trainer.callback_metrics
    for name in ("round", "block", "exposed_s", "wait_peer_s", "compute_s", "exchange_s", "upload_bytes"):
        assert f"parablock/{name}" in found
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [float(row["parablock/round"]) for row in csv.DictReader(file) if row["parablock/round"]]
    assert rows == list(range(8))


def test_random_numbers_of_the_client_follow_from_the_strategys_seed_alone() -> None:
    class Dropout(TaskModule):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (0.5 + torch.rand(()))

    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        module = Dropout(MLP, adamw_default)
        results.append(fit(MLP, strategy_for(), 0, 14, module=module).weights())
    assert_same_bits(results[0], results[1])


def test_what_earlier_fits_have_left_is_collected_before_workers_are_forked() -> None:
    """Process groups that are collected in a forked worker crash it."""
    collected: list[str] = []

    class Left:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            collected.append("left")

    class Look(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            collected.append("fit starts")

    gc.collect()
    gc.disable()
    try:
        Left()
        fit(MLP, strategy_for(), 0, K, callbacks=[Look()])
    finally:
        gc.enable()
    assert collected == ["left", "fit starts"]
