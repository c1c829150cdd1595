"""Training steps that return None, losses that do not reach the active block, and sparse gradients."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError
from tests.support.lightning_run import TaskModule, expected_weights, fit, loader_of, patterns_of, trainer_for
from tests.support.ranks import Ranks, ranks_of
from tests.tasks import (
    Task,
    adamw_default,
    assert_same_bits,
    draw_tokens,
    mlp_task,
    seeded,
    token_loss,
)

K, STEPS = 4, 30
MLP = mlp_task()


def strategy_for(task: Task = MLP, **changes: Any) -> ParaBlockStrategy:
    return ParaBlockStrategy(**{"local_steps": K, "blocks": patterns_of(task), "seed": 3, **changes})


def momentum(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


# training_step returns None


class Sometimes(TaskModule):
    """Has nothing to train on in three of five steps; zero_grad leaves zeros, by which an optimizer would move."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx % 5 < 2 else None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("make_optimizer", [adamw_default, momentum])
@pytest.mark.parametrize("delay_steps", [0, K])
def test_a_step_without_a_loss_changes_nothing_and_counts(delay_steps: int, make_optimizer: Any) -> None:
    strategy = strategy_for(delay_steps=delay_steps, weighting="samples")
    module = fit(MLP, strategy, 0, STEPS, module=Sometimes(MLP, make_optimizer))
    options: dict[str, Any] = {"n_clients": 1, "total_steps": STEPS, "make_optimizer": make_optimizer}
    expected = expected_weights(MLP, strategy.settings, trains=lambda _, step: step % 5 < 2, **options)
    assert_same_bits(module.weights(), expected)
    assert [record.steps for record in strategy.round_records] == [K] * (STEPS // K) + [STEPS % K]
    trained = [sum(step % 5 < 2 for step in range(t * K, min((t + 1) * K, STEPS))) for t in range(8)]
    assert [record.samples for record in strategy.round_records] == trained


def test_a_step_without_a_loss_leaves_the_gradient_scaler_alone() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # pyright: ignore[reportPrivateImportUsage]
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)  # type: ignore[arg-type]
    module = TaskModule(MLP, adamw_default)
    start = module.weights()
    fit(MLP, strategy_for(), 0, STEPS, module=Sometimes(MLP, adamw_default), plugins=[precision])
    assert start.keys() == module.weights().keys()


# A loss that does not reach the block


def first_layer_alone(model: nn.Module, client: int, step: int) -> Tensor:
    """In two of three steps the loss depends on the first block alone, as of a batch that needs no other part."""
    if step % 3:
        assert isinstance(model, nn.Sequential)
        return model[0](MLP.batch(client, step)[0]).square().mean()
    return MLP.loss_fn(model, client, step)


class Partly(TaskModule):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = first_layer_alone(self.model, int(batch[0]), int(batch[1]))
        return {"loss": loss, "more": 1} if batch_idx % 2 else loss


@pytest.mark.parametrize("block_order", ["shuffle", "importance"])
@pytest.mark.parametrize("delay_steps", [0, K, K + 2])
def test_a_loss_that_does_not_reach_the_block_is_a_step_without_a_gradient(delay_steps: int, block_order: Any) -> None:
    strategy = strategy_for(delay_steps=delay_steps, block_order=block_order, local_warmup_steps=2, proximal_mu=0.1)
    module = fit(MLP, strategy, 0, STEPS, module=Partly(MLP, adamw_default))
    expected = expected_weights(MLP, strategy.settings, n_clients=1, total_steps=STEPS, loss_fn=first_layer_alone)
    assert_same_bits(module.weights(), expected)
    assert sum(record.samples for record in strategy.round_records) == STEPS  # the losses count


def test_it_does_so_with_accumulation_and_in_mixed_precision() -> None:
    def half(model: nn.Module, client: int, batch: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return first_layer_alone(model, client, batch) / 2

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        return half(model, client, 2 * step) + half(model, client, 2 * step + 1)

    strategy = strategy_for()
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}
    module = fit(MLP, strategy, 0, STEPS, module=Partly(MLP, adamw_default), **options)
    assert_same_bits(
        module.weights(), expected_weights(MLP, strategy.settings, n_clients=1, total_steps=STEPS // 2, loss_fn=loss)
    )


class Reentrant(TaskModule):
    """Recomputes the middle of the model in the way that passes no gradient on where its inputs have none."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = self.task.batch(int(batch[0]), int(batch[1]))
        assert isinstance(self.model, nn.Sequential)
        middle = checkpoint(self.model[1:4], self.model[0](inputs), use_reentrant=True)
        return F.mse_loss(self.model[4](middle), targets)  # type: ignore[arg-type]


def test_a_block_that_gets_no_gradient_in_a_whole_round_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(MLP, strategy_for(block_order="sequential"), 0, STEPS, module=Reentrant(MLP, adamw_default))
    (line,) = [record.getMessage() for record in caplog.records if "no loss of client" in record.getMessage()]
    assert line.startswith("parablock: round 1, block ")
    assert "use_reentrant=False" in line and "its delta is zero" in line


def test_a_loss_that_reaches_no_block_at_all_is_refused() -> None:
    class Detached(TaskModule):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx).detach()

    with pytest.raises(ConfigurationError, match=r"round 2, block .*: no loss of client 0 .* not detached"):
        fit(MLP, strategy_for(), 0, STEPS, module=Detached(MLP, adamw_default))


# Sparse gradients


class Sparse(nn.Module):
    """An embedding whose gradient has the rows of the batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8, sparse=True)
        self.head = nn.Linear(8, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


SPARSE = Task("sparse", seeded(Sparse, 5), token_loss, draw_tokens, (("embed.weight",), ("head.weight", "head.bias")))


def plain_sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"proximal_mu": 0.3},
        {"proximal_mu": 0.3, "local_warmup_steps": 3},
        {"block_order": "importance"},
        {"block_order": "importance", "proximal_mu": 0.3, "block_optimizer_state": "offload"},
    ],
    ids=str,
)
def test_sparse_gradients_equal_the_oracle(changes: dict[str, Any]) -> None:
    strategy = strategy_for(SPARSE, delay_steps=K + 2, **changes)
    module = fit(SPARSE, strategy, 0, STEPS, make_optimizer=plain_sgd)
    expected = expected_weights(SPARSE, strategy.settings, n_clients=1, total_steps=STEPS, make_optimizer=plain_sgd)
    assert_same_bits(module.weights(), expected)


@pytest.mark.parametrize("proximal_mu", [0.0, 0.3])
def test_sparse_gradients_of_bfloat16_parameters_train_a_float32_master_copy(proximal_mu: float) -> None:
    task = Task("dense", seeded(lambda: dense_of(Sparse()), 5), SPARSE.loss, SPARSE.draw_batch, SPARSE.block_names)
    weights = [
        fit(
            used, strategy_for(used, proximal_mu=proximal_mu), 0, STEPS, make_optimizer=plain_sgd, precision="bf16-true"
        ).weights()
        for used in (SPARSE, task)
    ]
    for name, value in weights[0].items():
        assert value.dtype == torch.bfloat16
        # A dense gradient adds a row's entries up in bfloat16 in another order.
        assert torch.allclose(value, weights[1][name], rtol=0.02, atol=0.02), name


def dense_of(model: Sparse) -> Sparse:
    model.embed.sparse = False
    return model


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam])
def test_a_resumed_run_with_sparse_gradients_has_the_same_bits(tmp_path: Path, kind: Any) -> None:
    """In the middle of an accumulation the gradient is a part of the state."""

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        return kind([parameters[0]] if kind is torch.optim.SparseAdam else parameters, lr=0.1)

    saving = ModelCheckpoint(tmp_path, "{step}-{epoch}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    chosen: dict[str, Any] = {"blocks": ["embed"], "unmatched": "freeze"} if kind is torch.optim.SparseAdam else {}
    whole = fit(SPARSE, strategy_for(SPARSE, **chosen), 0, 14, make_optimizer=make, callbacks=[saving], **options)
    resumed = TaskModule(SPARSE, make)
    path = str(tmp_path / "step=6-epoch=0.ckpt")
    trainer_for(strategy_for(SPARSE, **chosen), **options).fit(
        resumed, loader_of(14, 0), ckpt_path=path, weights_only=True
    )
    assert_same_bits(resumed.weights(), whole.weights())


def test_a_dense_term_for_an_optimizer_of_sparse_gradients_is_refused() -> None:
    strategy = strategy_for(SPARSE, blocks=["embed"], unmatched="freeze", proximal_mu=0.1)
    with pytest.raises(ConfigurationError, match="proximal_mu adds a dense gradient, and SparseAdam takes sparse"):
        fit(SPARSE, strategy, 0, STEPS, make_optimizer=lambda p: torch.optim.SparseAdam([p[0]], lr=0.1))


# Two clients


ON_TWO = [
    "training_step returns None",
    "a loss that does not reach the block",
    "skip",
    "skip, star, delay 0, int8",
    "skip, kept state",
]


SUITE = "tests.strategy.scenarios.odd_steps"
ranks = ranks_of(SUITE)


@pytest.mark.parametrize("name", ON_TWO)
def test_one_of_two_clients(ranks: Ranks, name: str) -> None:
    ranks.run(name)


def test_a_skipped_client_is_named_on_its_own_rank(ranks: Ranks) -> None:
    outputs = ranks.run_all()
    pattern = r"round \d+, block .*: the delta of client 1 \(rank 1 on .*\) contains NaN or infinity: it has no weight"
    said = [re.findall(pattern, output) for output in outputs]
    assert [len(lines) for lines in said] == [0, 6]  # three fits, two rounds each


def test_a_client_that_stops_is_named_on_every_rank(ranks: Ranks) -> None:
    outputs = ranks.run("stopped")
    named = r"round 1, block .*: the delta of client 1 \(rank 1 on .*\) contains NaN or infinity; look for a loss"
    for output, kind in zip(outputs, ("PeerLostError", "NonFiniteError"), strict=True):
        (line,) = [line for line in output.splitlines() if line.startswith("STOPPED ")]
        assert line.startswith(f"STOPPED {kind}: ") and re.search(named, line), line
