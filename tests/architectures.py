"""One tiny model a kind of architecture, with random weights, data to learn from, and the blocks to be found in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.tasks import VOCABULARY, WIDTH, Batch, Task, draw_tokens, seeded, token_loss

SIDE, CLASSES = 8, 4
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Logits(nn.Module):
    """A model of transformers as a function from inputs to logits."""

    def __init__(self, build: Callable[[Any], nn.Module], config: PreTrainedConfig) -> None:
        super().__init__()
        self.net = build(config)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a batch to logits."""
        return self.net(inputs).logits


class SequenceToSequence(Logits):
    """An encoder and a decoder, both of which read the inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map tokens (samples, length) to logits (samples, length, VOCABULARY)."""
        return self.net(input_ids=inputs, decoder_input_ids=inputs).logits


def llama(**changes: Any) -> nn.Module:
    """A decoder, its head not tied."""
    return Logits(LlamaForCausalLM, LlamaConfig(**COMMON, **changes))


def tied_llama() -> nn.Module:
    """A decoder whose head is the embedding."""
    return llama(tie_word_embeddings=True)


def gpt2() -> nn.Module:
    """A decoder whose head is the embedding."""
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 8}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return Logits(
        GPT2LMHeadModel,
        GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=2, use_cache=False, initializer_range=0.2),
    )


def bert() -> nn.Module:
    """An encoder with a masked-language head."""
    return Logits(BertForMaskedLM, BertConfig(**COMMON, **NO_DROPOUT, max_position_embeddings=8))


def t5() -> nn.Module:
    """An encoder and a decoder that share their embeddings and the head."""
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 2}
    return SequenceToSequence(T5ForConditionalGeneration, T5Config(**sizes, dropout_rate=0.0, use_cache=False))


def vit() -> nn.Module:
    """An image classifier of patches."""
    shape = {"image_size": SIDE, "patch_size": 4, "num_labels": CLASSES}
    sizes = {name: COMMON[name] for name in COMMON if name.startswith(("num", "hidden", "inter", "init"))}
    return Logits(ViTForImageClassification, ViTConfig(**sizes, **shape))


def mixtral() -> nn.Module:
    """A mixture of four experts, of which each token goes to two."""
    config = MixtralConfig(**COMMON, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2)
    return Logits(MixtralForCausalLM, config)


def lora() -> nn.Module:
    """Adapters on the attention of a frozen decoder."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = llama()
    model.net = get_peft_model(model.net, config)  # type: ignore[arg-type]
    return model


def half_frozen() -> nn.Module:
    """A decoder of which the embedding, the first layer and the second's attention do not train."""
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in ("embed", "layers.0.", "attn")))
    return model


class Residual(nn.Module):
    """Two convolutions with BatchNorm, and a way around them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.around = nn.Sequential() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, n_in, side, side) to (samples, n_out, side, side)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.around(x))


class ResNet(nn.Module):
    """Two stages of two residual units; besides BatchNorm's buffers it counts bright pixels, in whole numbers."""

    bright: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bright", torch.zeros((), dtype=torch.long))
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 12), Residual(12, 12))
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (samples, 3, side, side) to logits (samples, CLASSES)."""
        if self.training:
            self.bright += (images > 1).sum()
        x = self.layer2(self.layer1(F.relu(self.bn(self.conv(images)))))
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM of two layers, read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (samples, length) to logits (samples, length, VOCABULARY)."""
        return self.head(self.lstm(self.embed(tokens))[0])


class UsedTwice(nn.Module):
    """The first of two layers stands in the list again, as the third."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([first, second, first])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (samples, length) to logits (samples, length, VOCABULARY)."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def _draw_images(generator: torch.Generator, client: int) -> Batch:
    """Noise on one of a few patterns, which a client has in a light of its own."""
    labels = torch.randint(CLASSES, (4,), generator=generator)
    patterns = torch.linspace(-1, 1, 3 * SIDE * SIDE).mul(3).sin().view(3, SIDE, SIDE)
    shifted = torch.stack([patterns.roll(int(label), -1) * (1 + int(label)) for label in labels])
    return shifted + client + 0.3 * torch.randn(shifted.shape, generator=generator), labels


def _label_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Architecture:
    """A task, and the names of the blocks that ``blocks="layers"`` and ``blocks=2`` find in its model."""

    task: Task
    layers: tuple[str, ...]
    two: tuple[str, ...]


def _text(build: Callable[[], nn.Module], layers: str, two: str) -> Architecture:
    task = Task(build.__name__, seeded(build, 0), token_loss, draw_tokens, ())
    return Architecture(task, tuple(layers.split()), tuple(two.split()))


def _images(build: Callable[[], nn.Module], layers: str, two: str) -> Architecture:
    task = Task(build.__name__, seeded(build, 0), _label_loss, _draw_images, ())
    return Architecture(task, tuple(layers.split()), tuple(two.split()))


ARCHITECTURES: dict[str, Architecture] = {
    "Llama": _text(llama, "embedding layers.0 layers.1 head", "embedding..layers.0 layers.1..head"),
    "GPT-2": _text(gpt2, "embedding h.0 h.1+head", "embedding..h.0 h.1..head"),
    "BERT": _text(bert, "embedding layer.0 layer.1 head", "embedding..layer.0 layer.1..head"),
    "T5": _text(  # between the stacks stands the encoder's last norm
        t5,
        "embedding encoder.block.0 encoder.block.1+between.3 decoder.block.0 decoder.block.1+head",
        "embedding..between.3 decoder.block.0..head",
    ),
    "ViT": _images(vit, "embedding layers.0 layers.1 head", "embedding..layers.0 layers.1..head"),
    "ResNet": _images(
        ResNet, "embedding layer1.0 layer1.1 layer2.0 layer2.1+head", "embedding..layer2.0 layer2.1..head"
    ),
    "LSTM": _text(Recurrent, "embedding lstm.l0 lstm.l1 head", "embedding..lstm.l0 lstm.l1..head"),
    "mixture of experts": _text(mixtral, "embedding layers.0 layers.1 head", "embedding..layers.0 layers.1..head"),
    "LoRA": _text(lora, "layers.0 layers.1", "layers.0 layers.1"),
    "tied weights": _text(tied_llama, "embedding layers.0 layers.1+head", "embedding..layers.0 layers.1..head"),
    "frozen parameters": _text(half_frozen, "layers.1 head", "layers.1 head"),
    "a layer used twice": _text(UsedTwice, "embedding layers.0 layers.1 head", "embedding..layers.0 layers.1..head"),
}
