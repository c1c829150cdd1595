"""Models without weights, their operations counted, and the probe of a machine's speed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from docs.hooks import horizon
from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import CausalLM
from lightning_parablock.models import speed as speed_module
from lightning_parablock.models.flops import COUNTED_BLOCKS, layers_flops, step_flops
from lightning_parablock.models.shapes import config_of, module_without_weights
from lightning_parablock.models.speed import TIMED_BLOCKS, Step, layers_to_time, measure_speed
from tests.unit.tiny_text import llama_config, save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), num_hidden_layers=3)


@pytest.mark.parametrize(
    ("shape", "parameters", "n_blocks"), [("llama3-8b", 8_030_261_248, 34), ("llama3-70b", 70_553_706_496, 82)]
)
def test_llama_3_as_published(shape: str, parameters: int, n_blocks: int) -> None:
    module = module_without_weights(config_of(shape), "bfloat16")
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert len(partition(module, "layers")) == n_blocks


def test_the_tables_of_large_models_are_up_to_date() -> None:
    page = horizon.PAGE.read_text()
    assert page == horizon.written(page), "run `make horizon`"


def test_a_shape_is_what_fit_would_train_by_name_and_size(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):  # only the configuration is read
        file.rename(file.with_suffix(".aside"))
    shape = module_without_weights(config_of(str(folder), layers=2))
    for file in folder.glob("*.aside"):
        file.rename(file.with_suffix(".safetensors"))
    module = CausalLM(str(folder), layers=2)
    assert [(n, p.shape) for n, p in shape.named_parameters()] == [(n, p.shape) for n, p in module.named_parameters()]
    assert [b.numel for b in partition(shape, "layers")] == [b.numel for b in partition(module, "layers")]


def test_a_misspelt_shape_is_not_looked_up_on_the_hub() -> None:
    with pytest.raises(ConfigurationError, match="'llama3-8B' is not known; did you mean 'llama3-8b'"):
        config_of("llama3-8B")


def by_freezing(module: CausalLM, block: Block, sequence_length: int) -> int:
    """Operations of a step as it is trained: everything else frozen, forward and backward counted together."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in block.parameter_names)
    network: Any = module.network
    network.set_attn_implementation("eager")
    ids = torch.zeros(1, sequence_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(ids, torch.ones_like(ids)).sum().backward()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blocks", ["layers", 3, [r"q_proj|embed", r"."]])
def test_operations_are_those_of_the_step_that_is_trained(tied: bool, blocks: Any) -> None:
    module = module_without_weights(llama_config(num_hidden_layers=3, tie_word_embeddings=tied))
    cut = partition(module, blocks) if isinstance(blocks, (str, int)) else by_patterns(module, blocks)
    counted = step_flops(module, cut, batch_size=2, sequence_length=8)
    assert counted == [2 * by_freezing(module, block, 8) for block in cut]


def by_patterns(module: CausalLM, patterns: list[str]) -> list[Block]:
    first = partition(module, patterns[:1], "freeze")[0]
    rest = tuple(n for n, _ in module.named_parameters() if n not in first.parameter_names)
    sizes = {n: p.numel() for n, p in module.named_parameters()}
    return [first, Block("rest", rest, sum(sizes[n] for n in rest))]


def test_of_many_alike_layers_the_ones_between_lie_on_a_line() -> None:
    module = module_without_weights(llama_config(num_hidden_layers=12, tie_word_embeddings=False))
    blocks = partition(module, "layers")
    assert len(blocks) > COUNTED_BLOCKS
    assert step_flops(module, blocks, 1, 8) == pytest.approx([by_freezing(module, block, 8) for block in blocks])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [4, 5, 12])
def test_of_alike_layers_two_short_models_tell_all(tied: bool, layers: int) -> None:
    config = llama_config(num_hidden_layers=layers, tie_word_embeddings=tied)
    module = module_without_weights(config)
    assert layers_flops(config, 2, 8) == step_flops(module, partition(module, "layers"), 2, 8)


def step() -> Step:
    return Step(batch_size=1, sequence_length=8, dtype="float32", device=torch.device("cpu"))


@pytest.mark.parametrize(("there", "timed"), [(1, 1), (40, 2)])
def test_the_probe_times_few_layers_where_there_is_no_time(there: int, timed: int) -> None:
    state = torch.get_rng_state()
    measured = measure_speed(llama_config(num_hidden_layers=there), step(), budget_s=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert measured.flop_per_s > 0
    assert (measured.layers, measured.steps) == (timed, 1 if there == 1 else 3)


def test_the_probe_cuts_the_model_to_what_fits_into_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights_bytes(layers: int) -> int:
        return sum(4 * p.numel() for p in module_without_weights(llama_config(num_hidden_layers=layers)).parameters())

    config = llama_config(num_hidden_layers=16)
    assert layers_to_time(config, step(), math.inf, 1.0) == 16
    monkeypatch.setattr(speed_module, "_free_bytes", lambda _: 2.5 * (weights_bytes(4) + 24 * 257 * 16) + 100)
    assert layers_to_time(config, step(), math.inf, 1.0) == 4
    assert layers_to_time(config, step(), math.inf, 0.0) == 2
    monkeypatch.setattr(speed_module, "_free_bytes", lambda _: 1000)
    with pytest.raises(ConfigurationError, match="the probe of 2 layers needs more memory than is free"):
        measure_speed(config, step(), 0.0)


def test_the_probe_cuts_the_model_to_what_time_allows() -> None:
    config = llama_config(num_hidden_layers=16)
    module = module_without_weights(llama_config(num_hidden_layers=8))
    flops = step_flops(module, partition(module, "layers"), 1, 8)
    one_pass = 2 * TIMED_BLOCKS * sum(flops) / len(flops)
    assert layers_to_time(config, step(), one_pass, 1.01) == 8
    assert layers_to_time(config, step(), one_pass, 0.99) == 4
