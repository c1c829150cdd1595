"""Every trainable parameter in exactly one block, cut as the user asked, and a clear word where that cannot be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetModel

from lightning_parablock.blocks.partition import TINY_SHARE, Block, partition
from lightning_parablock.errors import ConfigurationError
from tests.architectures import ARCHITECTURES, Architecture

EXAMPLES = settings(max_examples=80, derandomize=True, deadline=None, database=None)


def llama(*, tied: bool = False, n_layers: int = 3) -> nn.Module:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def flat_model(sizes: list[int]) -> nn.Module:
    """Parameters p0, p1, ... of the given sizes and no layers."""
    model = nn.Module()
    for index, size in enumerate(sizes):
        model.register_parameter(f"p{index}", nn.Parameter(torch.zeros(size)))
    return model


def names(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks]


def assert_exact_cover(model: nn.Module, blocks: list[Block]) -> None:
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    covered = [name for block in blocks for name in block.parameter_names]
    assert sorted(covered) == sorted(trainable)
    assert len(set(names(blocks))) == len(blocks)
    for block in blocks:
        assert block.numel == sum(trainable[name] for name in block.parameter_names) > 0
        order = [name for name in trainable if name in set(block.parameter_names)]
        assert list(block.parameter_names) == order, "not in the model's order"


# every architecture


EACH_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


@EACH_ARCHITECTURE
def test_the_blocks_of_an_architecture(architecture: Architecture) -> None:
    model = architecture.task.make_model()
    for option, expected in (("layers", architecture.layers), (2, architecture.two)):
        blocks = partition(model, option)
        assert_exact_cover(model, blocks)
        assert tuple(names(blocks)) == expected


@EACH_ARCHITECTURE
def test_any_number_of_blocks_covers_an_architecture(architecture: Architecture) -> None:
    model = architecture.task.make_model()
    n_parameters = sum(parameter.requires_grad for parameter in model.parameters())
    for n_blocks in (1, 7, n_parameters):
        blocks = partition(model, n_blocks)
        assert_exact_cover(model, blocks)
        assert len(blocks) == n_blocks


def test_adapters_are_blocks_by_layer_and_what_they_adapt_is_in_none() -> None:
    blocks = partition(ARCHITECTURES["LoRA"].task.make_model(), "layers")
    for index, block in enumerate(blocks):
        assert len(block.parameter_names) == 4
        assert all(f"layers.{index}." in name and ".lora_" in name for name in block.parameter_names)


def test_each_layer_of_an_lstm_holds_its_weights_of_both_directions() -> None:
    blocks = partition(ARCHITECTURES["LSTM"].task.make_model(), "layers")
    kinds = [f"{kind}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh")]
    for layer in (0, 1):
        expected = {f"lstm.{kind}_l{layer}{way}" for kind in kinds for way in ("", "_reverse")}
        assert set(blocks[1 + layer].parameter_names) == expected


def test_the_outermost_repetition_counts_stages_before_the_units_in_them() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[2, 2, 2], layer_type="basic")
    assert names(partition(ResNetModel(config), "layers")) == ["embedding", "stages.0", "stages.1", "stages.2"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_network_alone_is_cut_by_its_layers(kind: type[nn.RNNBase]) -> None:
    model = kind(4, 4, num_layers=3)
    assert names(partition(model, "layers")) == ["l0", "l1", "l2"]
    assert names(partition(nn.ModuleDict({"a": model, "b": kind(4, 4)}), "layers")) == ["a.l0", "a.l1", "a.l2", "b.l0"]


def test_recurrent_networks_in_a_list_are_its_layers() -> None:
    model = nn.ModuleList(nn.LSTM(4, 4, num_layers=2) for _ in range(2))
    assert names(partition(model, "layers")) == ["0", "1"]


# "layers"


def test_layers_of_a_llama() -> None:
    model = llama()
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["embedding", "layers.0", "layers.1", "layers.2", "head"]
    assert blocks[0].parameter_names == ("model.embed_tokens.weight",)
    assert blocks[4].parameter_names == ("model.norm.weight", "lm_head.weight")
    assert all(name.startswith("model.layers.1.") for name in blocks[2].parameter_names)


def test_a_tied_head_is_the_embeddings_and_the_lonely_norm_joins_its_neighbour() -> None:
    model = llama(tied=True)
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["embedding", "layers.0", "layers.1", "layers.2+head"]
    assert blocks[3].parameter_names[-1] == "model.norm.weight"


def test_layers_of_a_gpt2() -> None:
    model = gpt2()
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["embedding", "h.0", "h.1+head"]
    assert blocks[0].parameter_names == ("transformer.wte.weight", "transformer.wpe.weight")


def test_layers_of_a_plain_sequence() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["0", "2", "4"]


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(8, 4)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
        self.target = nn.Embedding(8, 4)
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
        self.out = nn.Linear(4, 8)


def test_two_stacks_keep_their_full_names_and_what_stands_between_is_a_block() -> None:
    model = EncoderDecoder()
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == [
        "embedding",
        "encoder.layers.0",
        "encoder.layers.1",
        "between.3",
        "decoder.layers.0",
        "decoder.layers.1",
        "head",
    ]
    assert blocks[3].parameter_names == ("target.weight",)


def test_experts_inside_a_layer_are_not_layers() -> None:
    layers = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}) for _ in range(2)
    )
    assert names(partition(nn.ModuleDict({"layers": layers}), "layers")) == ["layers.0", "layers.1"]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_frozen_layer_is_in_no_block(layer: int) -> None:
    model = llama()
    model.get_submodule(f"model.layers.{layer}").requires_grad_(False)
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert f"layers.{layer}" not in names(blocks)


def test_where_one_layer_alone_trains_it_is_a_block() -> None:
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2." in name or "head" in name)
    assert names(partition(model, "layers")) == ["layers.2", "head"]


def test_a_head_on_frozen_layers_is_told_what_else_there_is() -> None:
    model = llama().requires_grad_(False)
    model.get_submodule("lm_head").requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"no repeated layers among the trainable.*lm_head.weight"):
        partition(model, "layers")


def test_partly_frozen_layers_stay_blocks() -> None:
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["layers.0", "layers.1", "layers.2"]


def test_a_tiny_block_joins_the_one_before_it_and_a_tiny_first_one_the_next() -> None:
    def stack(before: int, after: int) -> list[str]:
        model = nn.Module()
        model.register_parameter("scale", nn.Parameter(torch.zeros(before)))
        model.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))
        model.register_module("norm", nn.LayerNorm(after, bias=False))
        return names(partition(model, "layers"))

    assert stack(1024, 1024) == ["embedding", "layers.0", "layers.1", "layers.2", "head"]
    assert stack(2, 1024) == ["embedding+layers.0", "layers.1", "layers.2", "head"]
    assert stack(1024, 2) == ["embedding", "layers.0", "layers.1", "layers.2+head"]
    assert stack(2, 2) == ["embedding+layers.0", "layers.1", "layers.2+head"]


@EXAMPLES
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=5), st.integers(0, 400), st.integers(0, 400))
def test_no_block_of_layers_is_tiny(widths: list[int], before: int, after: int) -> None:
    model = nn.Module()
    if before:
        model.register_parameter("before", nn.Parameter(torch.zeros(before)))
    model.layers = nn.ModuleList(flat_model([width]) for width in [*widths, 2000])
    if after:
        model.after = flat_model([after])
    blocks = partition(model, "layers")
    assert_exact_cover(model, blocks)
    units = len(widths) + 1 + bool(before) + bool(after)
    floor = TINY_SHARE * sum(block.numel for block in blocks) / units
    assert all(block.numel >= floor for block in blocks)


def test_a_model_without_repeated_layers_is_told_what_else_there_is() -> None:
    with pytest.raises(ConfigurationError, match=r"no repeated layers.*blocks=<number> or a list of patterns.*p0"):
        partition(flat_model([3, 4]), "layers")


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = llama().requires_grad_(False)
    for blocks in ("layers", 2, ["layers"]):
        with pytest.raises(ConfigurationError, match="no trainable parameter"):
            partition(model, blocks)


# a number


def test_a_number_makes_runs_of_neighbouring_layers() -> None:
    model = llama(n_layers=4)
    blocks = partition(model, 3)
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["embedding..layers.0", "layers.1..layers.2", "layers.3..head"]


def test_more_blocks_than_layers_cuts_between_parameters() -> None:
    model = llama(n_layers=2)
    blocks = partition(model, 9)
    assert_exact_cover(model, blocks)
    assert len(blocks) == 9


def test_one_block_holds_everything() -> None:
    model = gpt2()
    (block,) = partition(model, 1)
    assert_exact_cover(model, [block])


def test_as_many_blocks_as_parameters_and_not_one_more() -> None:
    model = flat_model([5, 1, 9])
    assert [block.parameter_names for block in partition(model, 3)] == [("p0",), ("p1",), ("p2",)]
    with pytest.raises(ConfigurationError, match="blocks=4, but the model has only 3 trainable parameters"):
        partition(model, 4)


@EXAMPLES
@given(st.data())
def test_a_number_of_blocks_is_balanced_as_well_as_can_be(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    n_blocks = data.draw(st.integers(1, len(sizes)))
    model = flat_model(sizes)
    blocks = partition(model, n_blocks)
    assert_exact_cover(model, blocks)
    assert [n for block in blocks for n in block.parameter_names] == [f"p{i}" for i in range(len(sizes))]
    possible = (
        sum(sum(sizes[low:high]) ** 2 for low, high in itertools.pairwise((0, *cuts, len(sizes))))
        for cuts in itertools.combinations(range(1, len(sizes)), n_blocks - 1)
    )
    assert sum(block.numel**2 for block in blocks) == min(possible)


@EXAMPLES
@given(st.data())
def test_every_trainable_parameter_is_in_exactly_one_block(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from([LLAMA, TIED, GPT2]))
    parameters = list(model.parameters())
    trainable = data.draw(st.sets(st.integers(0, len(parameters) - 1), min_size=6))
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index in trainable)
    assert_exact_cover(model, partition(model, data.draw(st.integers(1, 6))))
    if all(any(p.requires_grad for p in layer.parameters()) for layer in layers_of(model)):
        assert_exact_cover(model, partition(model, "layers"))


LLAMA, TIED, GPT2 = llama(), llama(tied=True), gpt2()


def layers_of(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


# patterns


def test_patterns_make_one_block_each_in_their_order() -> None:
    model = llama()
    blocks = partition(model, ["mlp", "attn", "embed|head|norm"])
    assert_exact_cover(model, blocks)
    assert names(blocks) == ["mlp", "attn", "embed|head|norm"]
    assert all(".mlp." in name for name in blocks[0].parameter_names)


def test_a_tied_parameter_answers_to_each_of_its_names_and_counts_once() -> None:
    model = llama(tied=True)
    blocks = partition(model, ["lm_head", r"layers\.", r"model\.norm"])
    assert_exact_cover(model, blocks)
    assert blocks[0].parameter_names == ("model.embed_tokens.weight",)
    with pytest.raises(ConfigurationError, match=r"'lm_head' and 'embed_tokens'.*both match 'model.embed_tokens"):
        partition(model, ["lm_head", "embed_tokens", "norm|attn|mlp"])


def test_overlapping_patterns_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'layers' and 'mlp' of blocks both match .* and 8 more"):
        partition(llama(), ["layers", "mlp", "embed|head|model.norm"])


def test_the_same_pattern_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'layers' of blocks is given twice"):
        partition(llama(), ["layers", "layers", "embed|head|model.norm"])


def test_a_pattern_that_matches_nothing_names_the_nearest_word() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'layrs\\\\.0' of blocks matches no parameter.*did you mean 'layers'"
    ):
        partition(llama(), [r"layrs\.0", "."])


def test_a_pattern_that_matches_only_frozen_parameters_says_so() -> None:
    model = llama()
    model.get_submodule("lm_head").requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"'lm_head' of blocks matches only frozen.*'lm_head.weight'"):
        partition(model, ["lm_head", "model"])


def test_unmatched_parameters_are_an_error_unless_they_shall_stay_frozen() -> None:
    model = llama()
    with pytest.raises(
        ConfigurationError, match=r"3 trainable parameters match no pattern.*'model.embed_tokens.weight'"
    ):
        partition(model, [r"layers\.[01]\.", r"layers\.2\."])
    blocks = partition(model, [r"layers\.[01]\.", r"layers\.2\."], "freeze")
    assert all(".layers." in name for block in blocks for name in block.parameter_names)
    assert len(blocks) == 2


def test_frozen_parameters_need_no_pattern() -> None:
    model = llama()
    model.get_submodule("model.embed_tokens").requires_grad_(False)
    assert_exact_cover(model, partition(model, ["layers", "head|model.norm"]))
