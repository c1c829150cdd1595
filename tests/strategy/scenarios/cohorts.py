"""Clients that take turns on a few ranks, under Lightning, against the oracle, in which each has a model of its own.

Each scenario runs on any number of ranks, but for two that need two.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.strategy.auto_steps import StepClock
from lightning_parablock.transport.link_probe import LinkSample
from tests.support.here import N_RANKS, RANK, SCRATCH
from tests.support.lightning_run import Steps, TaskModule, expected_weights, fit, patterns_of, trainer_for
from tests.support.scenarios import Scenario
from tests.tasks import _pool, adamw_default, assert_same_bits, mlp_task, transformer_task

K, SEED = 3, 11
TASK = transformer_task(tied=True)
CHOICES: dict[str, dict[str, Any]] = {
    "all": {},
    "some": {"cohort": 3},
    "one": {"cohort": 1, "cohort_sampling": "rotation", "block_order": "sequential"},
    "by size": {"cohort": 2, "cohort_sampling": "size", "weighting": "samples"},
    "important": {"cohort": 4, "block_order": "importance", "visit_more": {"": 1.0}},
    "cyclic": {"cohort": 4, "block_order": "cyclic", "server_optimizer": "yogi"},
    "kept": {"cohort": 3, "block_optimizer_state": "offload", "compression": "int8"},
}


class OwnData(TaskModule):
    """A module that has data of its own for each client: client i has 4 + i samples, taken in order."""

    def client_dataloader(self, client: int) -> DataLoader[tuple[int, int]]:
        return DataLoader(Steps(samples_of(client), client), batch_size=1)


def samples_of(client: int) -> int:
    return 4 + client % 7


def own_steps(cohorts: Cohorts, K: int = K) -> Callable[[int, int], int]:
    """(client, step of the common clock) -> which of its samples a client takes: it stands still while it sits out."""
    taken: dict[tuple[int, int], int] = {}

    def sample(client: int, step: int) -> int:
        before = [t for t in range(step // K) if client in cohorts.of_round(t)]
        taken[client, step] = (len(before) * K + step % K) % samples_of(client)
        return taken[client, step]

    return sample


def check(
    case: str, delay_steps: int | None, n_clients: int, n_rounds: int, task: Any = TASK, **changes: Any
) -> ParaBlockStrategy:
    """One fit of so many rounds equals the oracle on every rank."""
    options = {"local_steps": K} | CHOICES[case] | changes
    strategy = ParaBlockStrategy(
        delay_steps=delay_steps,
        blocks=patterns_of(task),
        seed=SEED,
        clients=n_clients,
        max_rounds=n_rounds,
        chunk_bytes=4096,
        **({"block_order": "random"} | options),
    )
    module = OwnData(task, adamw_default)
    watch = Watch()
    trainer = trainer_for(strategy, max_epochs=-1, devices=N_RANKS, callbacks=[watch])
    trainer.fit(module, DataLoader(Steps(1, 0)))
    settings = strategy.settings
    samples = tuple(samples_of(client) for client in range(n_clients))
    cohorts = Cohorts(n_clients, settings.cohort, settings.cohort_sampling, SEED, samples)
    sample = own_steps(cohorts, settings.local_steps)

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        return task.loss_fn(model, client, sample(client, step))

    expected = expected_weights(
        task,
        settings,
        n_clients=n_clients,
        total_steps=settings.local_steps * n_rounds,
        loss_fn=loss,
        client_samples=samples,
        samples=(lambda client, step: 1) if settings.weighting == "samples" else None,
    )
    assert_same_bits(module.weights(), expected)
    trained = [(record.round, record.client) for record in strategy.round_records if record.steps]
    hosted = strategy.hosted_clients
    assert trained == [(t, c) for t in range(n_rounds) for c in cohorts.of_round(t) if c in hosted]
    print(f"EQUAL {case} delay {delay_steps}, {n_clients} clients, {len(trained)} turns here")
    if case == "some" and n_clients == 1000:
        watch.must_be_flat()
    return strategy


class Watch(Callback):
    """Bytes of all tensors that are alive when a round begins."""

    def __init__(self) -> None:
        self.alive_bytes: dict[int, int] = {}

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        engine = trainer.strategy.session.engine
        if engine.at_round_start and engine.round % 4 == 0:
            _pool.cache_clear()  # the task's own batches
            gc.collect()
            storages = [thing.untyped_storage() for thing in gc.get_objects() if is_tensor(thing)]
            self.alive_bytes[engine.round] = sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def must_be_flat(self) -> None:
        rounds = sorted(self.alive_bytes)
        assert len(rounds) >= 6, rounds
        settled = [self.alive_bytes[t] for t in rounds[1:]]
        # What varies is the block of the round and message buffers; a delta kept for each turn would be 40,000 bytes.
        assert max(settled) - min(settled) < 16_000, self.alive_bytes
        print("FLAT", settled)


def is_tensor(thing: object) -> bool:
    return type(thing) in (Tensor, nn.Parameter)


class Noisy(TaskModule):
    """Draws random numbers in each step and has a buffer that training moves: both must follow the client."""

    def __init__(self) -> None:
        super().__init__(TASK, adamw_default)
        self.register_buffer("moved", torch.zeros(()))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.moved += float(batch[1]) / 64
        return super().training_step(batch, batch_idx) * (1 + 0.1 * torch.rand(())) * (1 + 0.01 * self.moved)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = adamw_default(list(self.parameters()))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def noisy_fit(folder: Path, ckpt_path: str | None = None, **options: Any) -> dict[str, Tensor]:
    """A fit on one shuffled data set that all ranks have, with a checkpoint every five batches."""
    strategy = ParaBlockStrategy(
        local_steps=K,
        delay_steps=K + 1,
        blocks=patterns_of(TASK),
        seed=SEED,
        clients=6,
        cohort=3,
        max_rounds=5,
        chunk_bytes=4096,
        **options,
    )
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer = trainer_for(
        strategy,
        max_epochs=-1,
        devices=N_RANKS,
        callbacks=[saving],
        enable_checkpointing=True,
        use_distributed_sampler=True,
    )
    module = Noisy()
    trainer.fit(module, DataLoader(Steps(60, 0), batch_size=1, shuffle=True), ckpt_path=ckpt_path)
    return module.weights()


def resume() -> None:
    """A run that goes on from any checkpoint, in the middle of a turn or between two, ends with the same bits."""
    for index, options in enumerate(
        ({}, {"block_order": "cyclic", "compression": "int8"}, {"block_order": "importance"})
    ):
        expected = noisy_fit(SCRATCH / f"whole{index}", **options)
        saved = sorted((SCRATCH / f"whole{index}").glob("*=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
        assert len(saved) >= 8, saved
        for path in (saved[1], saved[3], saved[4], saved[-2], saved[-1]):  # the last one lies at max_rounds on one rank
            assert_same_bits(noisy_fit(SCRATCH / f"again{index}", str(path), **options), expected)
        other = noisy_fit(SCRATCH / f"other{index}", **options, in_flight_value="anchor")
        assert any(not torch.equal(other[name], value) for name, value in expected.items()), "nothing matters here"
    print("RESUMED")


def sites() -> None:
    """A slow site trains on one step of three, and in another precision; both sites end with the same weights."""
    for weighting in ("uniform", "samples"):
        strategy = ParaBlockStrategy(
            local_steps=K,
            delay_steps=K + 2,
            blocks=patterns_of(TASK),
            seed=SEED,
            weighting=weighting,
            own_local_steps=1 if RANK == 1 else None,
        )
        weights = fit(TASK, strategy, RANK, 7 * K, devices=N_RANKS).weights()
        expected = expected_weights(
            TASK,
            strategy.settings,
            n_clients=N_RANKS,
            total_steps=7 * K,
            trains=lambda client, step: client != 1 or step % K == 0,
            samples=(lambda client, step: 1) if weighting == "samples" else None,
        )
        assert_same_bits(weights, expected)
    strategy = ParaBlockStrategy(local_steps=K, blocks=patterns_of(TASK), seed=SEED, own_local_s=1e-9)
    mixed = fit(TASK, strategy, RANK, 7 * K, devices=N_RANKS, precision="bf16-mixed" if RANK == 1 else "32-true")
    told = strategy_hashes(mixed)
    assert len(set(told)) == 1, told
    assert all(record.samples == 1 for record in strategy.round_records), "time is over after the first step"
    print("SITES")


def strategy_hashes(module: TaskModule) -> list[str]:
    """A hash of every rank's weights."""
    hashes: list[Any] = [None] * N_RANKS
    dist.all_gather_object(hashes, hash_tensors(module.weights().values()))
    return hashes


def thousand() -> None:
    """1,000 clients, cohorts of 20."""
    check("some", K, 1000, 28, task=mlp_task(), cohort=20)


def choices() -> None:
    """Every way to choose cohorts and orders at several delays, more clients than ranks."""
    for index, case in enumerate(CHOICES):
        for delay_steps in (0, K, K + 2, 2 * K)[index % 2 :: 2]:
            check(case, delay_steps, 5 if case != "all" else 4, 7)
    check("all", K + 1, N_RANKS, 7)  # one client per rank: the same rules as for any number
    for case in ("all", "some", "kept"):
        check(case, K + 2, 5, 7, delay_warmup_rounds=2)


def found() -> None:
    """Local steps and codec are those that the clients find; what they measure is given, so that K is small."""
    sample = LinkSample(pair_bytes=200_000, elapsed_s=4.0) if N_RANKS > 1 else None
    with (
        patch.object(ParaBlockStrategy, "time_links", lambda strategy, settings: sample),
        patch.object(StepClock, "shortest_s", 0.02),
    ):
        for case, delay_steps, warm_up in (("all", None, 0), ("some", None, 2), ("by size", 5, 0), ("kept", 5, 1)):
            used = check(case, delay_steps, 5, 5, local_steps="auto", delay_warmup_rounds=warm_up)
            assert not used.settings.pending
            print(f"FOUND {used.settings.local_steps}")
        for case, delay_steps, local_steps in (("all", None, K), ("some", K + 1, "auto"), ("by size", 2 * K, K)):
            used = check(case, delay_steps, 5, 5, local_steps=local_steps, compression="auto")
            assert not used.settings.pending
            assert used.settings.compression.is_lossy == (N_RANKS > 1)


SCENARIOS: dict[str, Scenario] = {
    "choices": choices,
    "found": found,
    "resume": resume,
    "sites": sites,
    "thousand": thousand,
}
