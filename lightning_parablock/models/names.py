"""Names that options of models take, apart from what imports torch."""

from __future__ import annotations

from typing import Literal

IGNORED_LABEL = -100
"""The label of a token on which no loss is computed, as in PyTorch and transformers."""

MODEL_CLASS_PATH = "lightning_parablock.models.CausalLM"
"""The model that fit trains unless another one is named."""

Dtype = Literal["float32", "bfloat16"]
"""Of weights."""

ALL_LINEAR = "all-linear"
"""Every linear layer but the head gets adapters."""
