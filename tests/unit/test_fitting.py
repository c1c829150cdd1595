"""``blocks="auto"``: the fewest blocks whose memory fits, against counting by hand and against trying all numbers."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch import nn

from lightning_parablock.blocks.partition import balanced_partitions, finest_partition, partition
from lightning_parablock.errors import CallOrderError, ConfigurationError
from lightning_parablock.models.shapes import config_of, module_without_weights
from lightning_parablock.planning import fitting
from lightning_parablock.planning.fitting import Budget, Fit, budget_of, fewest_blocks, fit_of, reason_of
from lightning_parablock.planning.memory import memory_parts, model_size
from lightning_parablock.settings import Int8, ServerNesterov, Settings
from tests.architectures import ARCHITECTURES, Architecture
from tests.unit.test_blocks import flat_model, llama

GPU_SETTINGS = Settings(blocks="auto")
FOUR = (12_800, 7200, 6000, 4400)
"""Bytes on the device for four parameters of 100 scalars in 1, 2, 3, 4 blocks: 1600 of weights, 16 per scalar of the
active block (gradient 4, AdamW 8, start value 4), 12 per scalar of the one in flight (committed value, delta, commit).
"""


@pytest.mark.parametrize(
    ("memory_bytes", "n_blocks"),
    [
        (1e9, 1),
        (FOUR[0], 1),
        (FOUR[0] - 1, 2),
        (FOUR[1], 2),
        (FOUR[1] - 1, 3),
        (FOUR[2], 3),
        (FOUR[2] - 1, 4),
        (4400, 4),
    ],
)
def test_the_fewest_blocks_by_hand(memory_bytes: float, n_blocks: int) -> None:
    fit = fewest_blocks(flat_model([100] * 4), [Budget(memory_bytes, counts_host=False)], 2, GPU_SETTINGS)
    assert len(fit.blocks) == n_blocks
    assert fit.needed_bytes == (FOUR[n_blocks - 1],)


def test_what_does_not_fit_however_it_is_cut_is_refused() -> None:
    budgets = [Budget(1e9, counts_host=False), Budget(4399, counts_host=False, owner="site b (client 1)")]
    said = (
        "blocks='auto': the memory of site b .client 1. is 4.4 kB, and even the smallest blocks, one per parameter, "
        "take 4.4 kB without activations, of which the weights are 1.6 kB; raise memory"
    )
    with pytest.raises(ConfigurationError, match=said):
        fewest_blocks(flat_model([100] * 4), budgets, 2, GPU_SETTINGS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "int8"},
        {"delay_steps": 0},
        {"delay_steps": 48, "server_optimizer": ServerNesterov()},
        {"topology": "star", "block_optimizer_state": "offload"},
        {"clients": 6, "cohort": 3},
    ],
    ids=str,
)
def test_no_smaller_number_fits(options: dict[str, Any]) -> None:
    draws, settings = random.Random(1), Settings(blocks="auto", **options)
    for module in (llama(n_layers=5), llama(tied=True), flat_model([3, 400, 7, 60, 60, 2000])):
        counted: list[tuple[int, ...]] = []
        for n_blocks in range(1, len(finest_partition(module)) + 1):
            blocks = partition(module, n_blocks)
            parts = memory_parts(model_size(module, blocks), 3, dataclasses.replace(settings, blocks=n_blocks))
            on_device = sum(part.size_bytes for part in parts if part.where == "device")
            counted.append((on_device, sum(part.size_bytes for part in parts)))
        for _ in range(10):
            low, high = min(all_in for _, all_in in counted), counted[0][1]
            gpu = Budget(draws.uniform(low, high), counts_host=False)
            cpu = Budget(draws.uniform(low, high), counts_host=True)
            fits = [on <= gpu.size_bytes and all_in <= cpu.size_bytes for on, all_in in counted]
            fit = fewest_blocks(module, [gpu, cpu], 3, settings)
            assert len(fit.blocks) == fits.index(True) + 1
            assert fit.blocks == partition(module, len(fit.blocks))
            assert fit.needed_bytes == counted[len(fit.blocks) - 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_partitions_in_order_are_those_of_the_numbers(architecture: Architecture) -> None:
    module = architecture.task.make_model()
    found = list(zip(range(1, 12), balanced_partitions(module), strict=False))
    assert found
    for n_blocks, blocks in found:
        assert blocks == partition(module, n_blocks)
    finest = finest_partition(module)
    assert [block.parameter_names for block in finest] == [
        (n,) for n, p in module.named_parameters() if p.requires_grad
    ]


def test_the_last_of_the_partitions_has_one_block_per_parameter() -> None:
    module = flat_model([5, 1, 1, 9])
    made = list(balanced_partitions(module))
    assert [len(blocks) for blocks in made] == [1, 2, 3, 4]
    assert [b.parameter_names for b in made[-1]] == [b.parameter_names for b in finest_partition(module)]


def test_an_8b_model_in_40_and_80_gigabytes() -> None:
    module = module_without_weights(config_of("llama3-8b"), "bfloat16")
    found = {gb: fewest_blocks(module, [Budget(gb * 1e9, counts_host=False)], 2, GPU_SETTINGS) for gb in (40, 80)}
    for gb, fit in found.items():
        assert fit.needed_bytes[0] <= gb * 1e9
        with_one_less = partition(module, len(fit.blocks) - 1)
        assert fit_of(module, with_one_less, [Budget(0, counts_host=False)], 2, GPU_SETTINGS).needed_bytes[0] > gb * 1e9
    assert len(found[80].blocks) < len(found[40].blocks)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_the_default_budget_is_three_quarters_of_what_is_free_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(10, 10, bias=False)
    monkeypatch.setattr(fitting, "free_bytes", lambda device, processes: 100_000 // processes)
    budget = budget_of(torch.device("cpu"), module, None, processes=2)
    assert budget.size_bytes == 0.75 * (50_000 + 400)
    assert budget.counts_host
    elsewhere = budget_of(torch.device("cpu"), nn.Linear(10, 10, bias=False, device="meta"), None)
    assert elsewhere.size_bytes == 75_000


def test_a_given_budget_is_what_it_says() -> None:
    budget = budget_of(torch.device("cuda"), nn.Linear(2, 2), 24e9)
    assert budget.size_bytes == 24e9
    assert not budget.counts_host


def test_the_reason_names_the_client_whose_memory_is_closest_to_full() -> None:
    blocks = partition(flat_model([100] * 4), 2)
    budgets = [Budget(9e3, counts_host=False, owner="a"), Budget(1e4, counts_host=True, owner="b")]
    assert reason_of(Fit(blocks, (7200, 9900)), budgets) == (
        "the fewest whose memory fits: 9.9 kB without activations, of the 10.0 kB of b; the largest (p0..p1) has 200 "
        "parameters"
    )


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size_bytes"), [("24gb", 24e9), ("1.5 GB", 1.5e9), (2e9, 2e9), ("500MB", 5e8), (None, None)]
)
def test_memory_is_a_number_of_bytes(given: Any, size_bytes: float | None) -> None:
    settings = Settings(blocks="auto", memory=given)
    assert settings.memory == size_bytes
    assert dataclasses.replace(settings, seed=1).memory == size_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blocks": "auto", "memory": "24gbit"}, "memory must be bytes, such as 500MB or 1.5GB, got '24gbit'"),
        ({"blocks": "auto", "memory": 0}, "memory must be more than 0"),
        ({"blocks": "auto", "memory": True}, "memory must be bytes"),
        ({"blocks": 4, "memory": "24gb"}, "memory decides how many blocks blocks='auto' makes, and blocks is 4"),
        (
            {"blocks": "auto", "local_steps": "auto", "delay_steps": 8},
            "blocks='auto' must know how many exchanges are in flight",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Settings(**options)


def test_settled_settings_are_those_that_were_given_the_number() -> None:
    auto = Settings(blocks="auto", memory="24gb", compression=Int8(), seed=4)
    given = Settings(blocks=7, compression=Int8(), seed=4)
    assert auto.with_blocks(7) == given
    assert given.with_blocks(3) == given
    assert auto.fingerprint()["blocks"] == "'auto'"
    assert "memory" not in auto.fingerprint()


def test_a_model_is_not_cut_before_it_is_decided() -> None:
    with pytest.raises(CallOrderError, match="how many blocks 'auto' means must be decided"):
        partition(flat_model([1, 2]), "auto")
