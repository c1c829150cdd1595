"""Models without weights: known shapes by name, and any model's shape on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from lightning_parablock.checks import closest
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.loading import keep_first_layers, load_config, network_of_architecture, resolve_model
from lightning_parablock.models.lora import Adapters, add_adapters
from lightning_parablock.models.names import Dtype

_LLAMA3: dict[str, Any] = {
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        **_LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama3-70b": {
        **_LLAMA3,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""Shapes of Llama 3 (arXiv 2407.21783, table 3), which need no download."""


def config_of(model: str, gguf_file: str | None = None, layers: int | None = None) -> PretrainedConfig:
    """The configuration of a model: one of :data:`SHAPES`, or any model that ``CausalLM`` takes.

    For a hub id or folder only the configuration is read. A GGUF file is converted first, once per host, as in
    training.

    Raises:
        ConfigurationError: there is no configuration, or it has fewer layers.
    """
    if model not in SHAPES:
        close = closest(model, list(SHAPES), cutoff=0.8)
        if close and not Path(model).exists():
            raise ConfigurationError(f"model {model!r} is not known; did you mean {close!r}?")
        return load_config(resolve_model(model, gguf_file), layers)
    config = LlamaConfig(**SHAPES[model])
    if layers is not None:
        keep_first_layers(config, layers)
    return config


class ModelShape(nn.Module):
    """The network of a CausalLM, with the same parameter names, without Lightning, tokenizer and metrics.

    Args:
        config: transformers' configuration.
        dtype: Type of the weights.
        adapters: Adapters to add; None for none.
    """

    def __init__(self, config: PretrainedConfig, dtype: Dtype, adapters: Adapters | None = None) -> None:
        super().__init__()
        self.network = network_of_architecture(config.to_json_string(use_diff=False), None, dtype)
        if adapters is not None:
            add_adapters(self.network, adapters)
        self.network.train()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, (batch, sequence, vocabulary), for token ids, (batch, sequence)."""
        return self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def module_without_weights(
    config: PretrainedConfig, dtype: Dtype = "float32", adapters: Adapters | None = None
) -> ModelShape:
    """The module that ``fit`` trains, on the meta device: shapes without memory."""
    with torch.device("meta"):
        return ModelShape(config, dtype, adapters)
