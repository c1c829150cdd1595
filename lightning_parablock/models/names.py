"""Values of model options, in a module that does not import torch."""

from __future__ import annotations

from typing import Literal

IGNORED_LABEL = -100
"""The label of a token on which no loss is computed, as in PyTorch and transformers."""

MODEL_CLASS_PATH = "lightning_parablock.models.CausalLM"
"""Model that fit trains by default."""

Dtype = Literal["float32", "bfloat16"]
"""Type of a model's weights."""

ALL_LINEAR = "all-linear"
"""Target of the adapters: every linear layer but the head."""
