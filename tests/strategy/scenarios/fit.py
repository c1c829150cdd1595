"""One rank of the fits that test_fit.py starts: each scenario is a real Trainer.fit, checked and named here."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_parablock import LowRank, ParaBlockStrategy, ServerNesterov
from lightning_parablock.codecs.low_rank import FactorLayout
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.planning.traffic import traffic_of_clients
from tests.oracle import run_oracle
from tests.support.engine import oracle_config
from tests.support.here import N_RANKS, RANK, SCRATCH
from tests.support.lightning_run import Steps, TaskModule, expected_weights, fit, patterns_of
from tests.tasks import Task, adamw_default, assert_same_bits, transformer_task, wide_task

TASK = transformer_task()
K, STEPS, SEED = 4, 30, 3


def strategy(**options: Any) -> ParaBlockStrategy:
    """The strategy on the task's blocks."""
    chosen = {"local_steps": K, "blocks": patterns_of(TASK), "seed": SEED, "exchange_timeout_s": 60}
    return ParaBlockStrategy(**(chosen | options))  # type: ignore[arg-type]


def oracle(used: ParaBlockStrategy, task: Task = TASK, total_steps: int = STEPS) -> dict[str, Tensor]:
    """The weights that the same settings give in the oracle."""
    settings, n_blocks = used.settings, len(task.block_names)
    schedule = [block_of_round(settings.block_order, n_blocks, t, settings.seed) for t in range(STEPS)]
    config = oracle_config(task, settings, schedule, n_clients=N_RANKS, total_steps=total_steps)
    return run_oracle(config, task.make_model, task.loss_fn, adamw_default).weights


def equals_the_oracle(**options: Any) -> Callable[[], None]:
    """A scenario: fit with these options, with validation and logging going on, and compare every bit."""

    def scenario() -> None:
        used = strategy(**options)
        module = fit(TASK, used, RANK, STEPS, devices=N_RANKS, val_check_interval=7)
        assert_same_bits(module.weights(), oracle(used))
        n_rounds = -(-STEPS // K)
        assert [record.round for record in used.round_records] == list(range(n_rounds))
        assert [record.steps for record in used.round_records] == [K] * (n_rounds - 1) + [STEPS % K]
        assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())

    return scenario


def factors_take_the_bytes_of_their_length() -> None:
    """The larger and the smaller factor in turn, at every visit of a block."""
    task = wide_task()
    used = strategy(
        blocks=patterns_of(task), compression=LowRank(2), delay_steps=0, block_order="sequential", chunk_bytes=4096
    )
    fit(task, used, RANK, 6 * K, devices=N_RANKS)
    for visit, record in enumerate(used.round_records):
        layout = FactorLayout(used.blocks[visit % 3].shapes, 2)
        carried = layout.carried(sends_left=visit < 3)
        assert carried == {0: (4500, 1508), 1: (24, 3008), 2: (9, 9)}[visit % 3][visit // 3]
        planned = traffic_of_clients(carried, N_RANKS, used.settings)[RANK]
        assert (record.upload_bytes, record.download_bytes) == (planned.upload_bytes, planned.download_bytes)
    assert len(used.round_records) == 6


def presets_by_name() -> None:
    """The registered names, with their own block rule, against the oracle with the same blocks."""
    for name, delay_steps in (("parablock", 16), ("fedbcd", 0), ("fedavg", 0)):
        steps = 35  # two rounds of the default 16 steps and a short one
        module = TaskModule(TASK, adamw_default)
        trainer = quiet_trainer(name)
        trainer.fit(module, DataLoader(Steps(steps, RANK), batch_size=1))
        used: Any = trainer.strategy
        assert used.settings.delay_steps == delay_steps
        assert (len(used.blocks) == 1) == (name == "fedavg")
        names = tuple(tuple(n.removeprefix("model.") for n in block.parameter_names) for block in used.blocks)
        task = Task(TASK.name, TASK.make_model, TASK.loss, TASK.draw_batch, names)
        assert_same_bits(module.weights(), oracle(used, task, steps))


def quiet_trainer(used: Any, **options: Any) -> Trainer:
    """A Trainer that writes nothing."""
    defaults = {
        "accelerator": "cpu",
        "devices": N_RANKS,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": os.environ.get("SCRATCH", tempfile.gettempdir()),  # where a failing fit leaves its model
    }
    return Trainer(strategy=used, **(defaults | options))  # type: ignore[arg-type]


class AtStep(Callback):
    """Calls a function after one training step."""

    def __init__(self, step: int, action: Callable[[Trainer, LightningModule], None]) -> None:
        self.step, self.action, self.calls = step, action, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.action(trainer, pl_module)
            self.calls += 1


def a_checkpoint_holds_the_committed_model() -> None:
    """In the middle of round 2 only round 0 is merged; saving must show that W and leave the parameters alone."""
    used = strategy(delay_steps=K)
    expected = oracle(strategy(delay_steps=K), total_steps=K)  # the drain after one round: W with round 0

    def compare(trainer: Trainer, module: LightningModule) -> None:
        live = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        saved = trainer.strategy.lightning_module_state_dict()
        committed = {name.removeprefix("model."): saved[name] for name in live}
        assert_same_bits(committed, expected)
        assert_same_bits(dict(module.named_parameters()), live)
        assert any(not torch.equal(live[name], saved[name]) for name in live), "the client is ahead of W in mid-round"
        trainer.save_checkpoint(path)
        assert_same_bits(dict(module.named_parameters()), live)

    path = SCRATCH / "middle.ckpt"
    look = AtStep(2 * K + 2, compare)
    module = fit(TASK, used, RANK, STEPS, devices=N_RANKS, callbacks=[look])
    assert look.calls == 1
    assert_same_bits(module.weights(), oracle(used))
    loaded = TaskModule(TASK, adamw_default)
    loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert_same_bits(loaded.weights(), expected)


class OnlyTheBlockMoves(Callback):
    """Compares every parameter before and after each optimizer step."""

    def __init__(self) -> None:
        self.moved: set[str] = set()
        self.compared = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before: dict[str, Tensor] = {}
        block: set[str] = set()

        def look(*_: Any) -> None:
            before.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})
            block.clear()
            block.update(name for name, p in pl_module.named_parameters() if p.requires_grad)
            assert block in [set(b.parameter_names) for b in trainer.strategy.blocks]  # type: ignore[attr-defined]

        def compare(*_: Any) -> None:
            moved = {n for n, value in before.items() if not torch.equal(pl_module.get_parameter(n).detach(), value)}
            assert moved <= block, f"{moved - block} moved while another block trained"
            self.moved |= moved
            self.compared += 1

        (optimizer,) = trainer.strategy.optimizers
        optimizer.register_step_pre_hook(look)
        optimizer.register_step_post_hook(compare)


def parameters_outside_the_block_do_not_move() -> None:
    """With weight decay and momentum, which move a parameter even where its gradient is zero."""
    for make in (
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    ):
        watcher = OnlyTheBlockMoves()
        fit(TASK, strategy(), RANK, STEPS, devices=N_RANKS, callbacks=[watcher], make_optimizer=make)
        assert watcher.compared == STEPS
        assert watcher.moved == {name for name, _ in TaskModule(TASK, adamw_default).named_parameters()}


class Looking(Callback):
    """Notes the weights that validation sees, by the number of optimizer steps made."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, TaskModule)
        self.seen[trainer.global_step] = pl_module.weights()


def validation_sees_the_committed_model() -> None:
    """What is merged by then, and nothing else; a run without validation has the same bits in the end."""
    delay_steps = K + 2
    look = Looking()
    used = strategy(delay_steps=delay_steps)
    module = fit(TASK, used, RANK, STEPS, devices=N_RANKS, val_check_interval=7, callbacks=[look])
    assert sorted(look.seen) == [0, 7, 14, 21, 28]
    for step, weights in look.seen.items():
        n_merged = sum((t + 1) * K + delay_steps <= step for t in range(STEPS))
        # A run of that many rounds, drained, has committed just these.
        assert_same_bits(weights, expected_weights(TASK, used.settings, n_clients=N_RANKS, total_steps=n_merged * K))
    unseen = fit(TASK, strategy(delay_steps=delay_steps), RANK, STEPS, devices=N_RANKS, limit_val_batches=0)
    assert_same_bits(unseen.weights(), module.weights())


def uneven_loaders_end_together() -> None:
    """8 and 12 batches: every client makes 8 steps, and all hold the same weights."""
    used = strategy(uneven_clients="shorten")
    module = fit(TASK, used, RANK, 8 + 4 * RANK, devices=N_RANKS)
    assert sum(record.steps for record in used.round_records) == 8
    assert_same_bits(module.weights(), oracle(used, total_steps=8))


class Seen(Callback):
    """Collects which samples a client trained on, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.epochs[-1].append(int(batch[1]))


def identical_loaders_are_cut() -> None:
    """Disjoint, complete, the same shard in every epoch, in another order."""
    seen = Seen()
    trainer = quiet_trainer(strategy(), max_epochs=2, callbacks=[seen])
    trainer.fit(TaskModule(TASK, adamw_default), DataLoader(Steps(40, client=0), batch_size=1, shuffle=True))
    first, second = seen.epochs
    assert sorted(first) == sorted(second)
    assert first != second
    shards: list[Any] = [None] * N_RANKS
    dist.all_gather_object(shards, sorted(first))
    assert sorted(index for shard in shards for index in shard) == list(range(40))


def use_distributed_sampler_false_leaves_loaders_alone() -> None:
    """Every client trains on all of it, in its own order."""
    seen = Seen()
    trainer = quiet_trainer(strategy(), use_distributed_sampler=False, callbacks=[seen])
    trainer.fit(TaskModule(TASK, adamw_default), DataLoader(Steps(12, client=0), batch_size=1))
    assert seen.epochs == [list(range(12))]


def accumulation_counts_optimizer_steps() -> None:
    """Rounds go by optimizer steps: 24 batches, two a step, are three rounds of four."""
    used = strategy()
    module = fit(TASK, used, RANK, 24, devices=N_RANKS, accumulate_grad_batches=2)
    assert [record.steps for record in used.round_records] == [4, 4, 4]
    assert module.trainer.global_step == 12

    def both(model: nn.Module, client: int, step: int) -> Tensor:
        return TASK.loss_fn(model, client, 2 * step) / 2 + TASK.loss_fn(model, client, 2 * step + 1) / 2

    same = expected_weights(TASK, used.settings, n_clients=N_RANKS, total_steps=12, loss_fn=both)
    assert_same_bits(module.weights(), same)


def metrics_are_logged() -> None:
    """The names of the contract stand in callback_metrics."""
    module = fit(TASK, strategy(), RANK, STEPS, devices=N_RANKS)
    names = {"round", "block", "exposed_s", "wait_peer_s", "upload_bytes", "download_bytes"}
    assert {f"parablock/{name}" for name in names} <= set(module.trainer.callback_metrics)


def a_trainer_fits_twice() -> None:
    """A second fit starts where the first ended, with rounds and a number of batches of its own."""
    used = strategy(uneven_clients="shorten")
    module, trainer = TaskModule(TASK, adamw_default), quiet_trainer(used, use_distributed_sampler=False)
    trainer.fit(module, DataLoader(Steps(8 + 4 * RANK, RANK), batch_size=1))
    assert [record.round for record in used.round_records] == [0, 1]
    middle = module.weights()
    assert_same_bits(middle, oracle(used, total_steps=8))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, DataLoader(Steps(12, RANK), batch_size=1))
    assert [record.round for record in used.round_records] == [0, 1, 2]

    def continued() -> nn.Module:
        model = TASK.make_model()
        model.load_state_dict(middle)
        return model

    task = Task("continued", continued, TASK.loss, TASK.draw_batch, TASK.block_names)
    assert_same_bits(module.weights(), oracle(used, task, total_steps=12))


def every_client_starts_from_the_first_ones_weights() -> None:
    """They travel only where they differ: equal weights of two clients are left where they are."""
    sent = Counter[bool]()

    def broadcast(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[tensor.is_floating_point()] += 1
        return original(tensor, *args, **kwargs)

    original = dist.broadcast
    for differs in (False, True):
        used, module = strategy(), TaskModule(TASK, adamw_default)
        if differs and RANK == 1:
            with torch.no_grad():
                next(module.model.parameters()).add_(1.0)
        sent.clear()
        with mock.patch.object(dist, "broadcast", broadcast):
            fit(TASK, used, RANK, STEPS, devices=N_RANKS, module=module)
        assert_same_bits(module.weights(), oracle(used))
        assert (sent[True] > 0) == differs


def bfloat16_with_a_master_copy() -> None:
    """Against a plain loop: bfloat16 models, a float32 copy of the block in training, a float32 W on the server."""
    used = strategy(delay_steps=0)
    module = fit(TASK, used, RANK, STEPS, devices=N_RANKS, precision="bf16-true")
    models = [TASK.make_model().to(torch.bfloat16) for _ in range(N_RANKS)]
    committed = {name: parameter.detach().float() for name, parameter in models[0].named_parameters()}
    for first in range(0, STEPS, K):
        names = TASK.block_names[block_of_round("shuffle", len(TASK.block_names), first // K, SEED)]
        deltas: list[dict[str, Tensor]] = []
        for client, model in enumerate(models):
            model.load_state_dict({name: value.bfloat16() for name, value in committed.items()}, strict=False)
            block = {name: model.get_parameter(name) for name in names}
            masters = {name: nn.Parameter(parameter.detach().float()) for name, parameter in block.items()}
            start = {name: master.detach().clone() for name, master in masters.items()}
            optimizer = adamw_default(list(masters.values()))
            for step in range(first, min(first + K, STEPS)):
                model.zero_grad()
                TASK.loss_fn(model, client, step).backward()
                for name, master in masters.items():
                    gradient = block[name].grad
                    assert gradient is not None
                    master.grad = gradient.float()
                optimizer.step()
                for name, master in masters.items():
                    block[name].data.copy_(master.detach())
            deltas.append({name: master.detach() - start[name] for name, master in masters.items()})
        for name in names:
            committed[name] = committed[name] + (deltas[0][name] + deltas[1][name]) / 2
    expected = {name: value.bfloat16() for name, value in committed.items()}
    assert_same_bits(module.weights(), expected)


def small_steps_are_not_lost_in_bfloat16() -> None:
    """A round's steps together are less than the last bit of a weight; the server's sum of rounds moves it."""

    def loss(model: nn.Module, _: Any) -> Tensor:
        return sum(parameter.sum() for parameter in model.parameters())  # type: ignore[return-value]

    task = Task("sum", TASK.make_model, loss, TASK.draw_batch, TASK.block_names)
    module = TaskModule(task, lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.5)
    fit(task, strategy(blocks=1, local_steps=5), RANK, 60, devices=N_RANKS, module=module, precision="bf16-true")
    last_bit = 2**-10  # of a bfloat16 a little below 0.5
    assert last_bit / 2 < 60 * 1e-5 < last_bit
    assert all((parameter == 0.5 - last_bit).all() for parameter in module.parameters())


SCENARIOS: dict[str, Callable[[], None]] = {
    "delay 0": equals_the_oracle(delay_steps=0),
    "delay K": equals_the_oracle(),
    "delay K+2, star, Nesterov": equals_the_oracle(
        delay_steps=K + 2, topology="star", server_optimizer=ServerNesterov(), block_order="random"
    ),
    "delay 2K, anchor": equals_the_oracle(delay_steps=2 * K, in_flight_value="anchor", block_order="sequential"),
    "two rounds without delay, then K": equals_the_oracle(delay_warmup_rounds=2),
    "three rounds without delay, then 2K": equals_the_oracle(
        delay_steps=2 * K, delay_warmup_rounds=3, topology="star", compression="int8", block_order="random"
    ),
    "low rank, bytes": factors_take_the_bytes_of_their_length,
    "low rank, star": equals_the_oracle(compression=LowRank(2), topology="star", block_order="random"),
    "kept state, Adam on the server": equals_the_oracle(
        block_optimizer_state="keep",
        local_warmup_steps=2,
        proximal_mu=0.1,
        server_optimizer="adam",
        delay_steps=K + 2,
        block_order="random",
    ),
    "presets": presets_by_name,
    "validation": validation_sees_the_committed_model,
    "checkpoint": a_checkpoint_holds_the_committed_model,
    "only the block moves": parameters_outside_the_block_do_not_move,
    "uneven loaders": uneven_loaders_end_together,
    "identical loaders": identical_loaders_are_cut,
    "sampler left alone": use_distributed_sampler_false_leaves_loaders_alone,
    "accumulation": accumulation_counts_optimizer_steps,
    "metrics": metrics_are_logged,
    "starting weights": every_client_starts_from_the_first_ones_weights,
    "bf16-true": bfloat16_with_a_master_copy,
    "small steps": small_steps_are_not_lost_in_bfloat16,
    "two fits": a_trainer_fits_twice,
}
