"""One rank of the fits that test_architectures.py starts: each kind of architecture, trained by a real Trainer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.transport.chunks import HEADER_BYTES
from tests.architectures import ARCHITECTURES
from tests.support.here import N_RANKS, RANK
from tests.support.lightning_run import TaskModule, expected_weights, fit, inner_block_names
from tests.tasks import POOL_BATCHES, Task, adamw_default, assert_same_bits

K, STEPS, SEED = 4, 30, 3
FALLS_TO = 0.98  # of the loss before training, which in some thirty steps a block moves no further on the smallest ones


def trains(name: str, blocks: Literal["layers"] | int = "layers") -> Callable[[], None]:
    """A scenario: the loss falls, the bits are the oracle's and every client's, and the blocks have sensible names."""
    architecture = ARCHITECTURES[name]

    def scenario() -> None:
        used, module = fitted(architecture.task, blocks)
        expected_names = architecture.layers if blocks == "layers" else architecture.two
        assert tuple(block.name for block in used.blocks) == expected_names
        assert loss_of(architecture.task, module.model) < FALLS_TO * loss_of(architecture.task)
        names = inner_block_names(used.blocks)
        n_clients, total_steps = N_RANKS, STEPS
        weights = expected_weights(
            architecture.task, used.settings, n_clients=n_clients, total_steps=total_steps, block_names=names
        )
        assert_same_bits(module.weights(), weights)
        assert len(set(of_all_ranks(hash_tensors(module.weights().values())))) == 1

    return scenario


def fitted(task: Task, blocks: Literal["layers"] | int) -> tuple[ParaBlockStrategy, TaskModule]:
    """The strategy and the module after a fit."""
    used = ParaBlockStrategy(local_steps=K, blocks=blocks, seed=SEED, exchange_timeout_s=60)
    module = TaskModule(task, adamw_default)
    return used, fit(task, used, RANK, STEPS, module=module, devices=N_RANKS)


@torch.no_grad()
def loss_of(task: Task, model: nn.Module | None = None) -> float:
    """Mean loss over all clients' training data; the untrained model's by default."""
    model = copy.deepcopy(model or task.make_model()).train()  # a copy: BatchNorm's statistics move
    losses = [task.loss_fn(model, client, step) for client in range(N_RANKS) for step in range(POOL_BATCHES)]
    return float(torch.stack(losses).mean())


def of_all_ranks(value: object) -> list[object]:
    """The value of every rank."""
    values: list[object] = [None] * N_RANKS
    dist.all_gather_object(values, value)
    return values


def adapters_alone_travel() -> None:
    """A round moves the adapters of one layer and the stated headers; the weights that they adapt stay as they were."""
    task = ARCHITECTURES["LoRA"].task
    used, module = fitted(task, "layers")
    numel = {block.name: block.numel for block in used.blocks}
    assert numel == {"layers.0": 256, "layers.1": 256}  # two adapters of 16 x 4 + 4 x 16
    for record in used.round_records:
        bytes_of_ranks = of_all_ranks(record.upload_bytes)
        # So few scalars are not divided: one rank serves them and sends the commit, the other one its delta.
        assert bytes_of_ranks == [4 * numel[record.block] + HEADER_BYTES] * 2, bytes_of_ranks
    before = dict(task.make_model().named_parameters())
    moved = {name for name, value in module.weights().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


SCENARIOS: dict[str, Callable[[], None]] = {
    **{name: trains(name) for name in ARCHITECTURES},
    "T5, two blocks": trains("T5", blocks=2),
    "adapters alone travel": adapters_alone_travel,
}


def prepare() -> None:
    """Without Lightning's advice."""
    warnings.simplefilter("ignore")
