"""Causal language models as a LightningModule: weights, LoRA adapters, metrics, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.system.lazy import attributes_of

if TYPE_CHECKING:
    from lightning_parablock.models.causal_lm import CausalLM

__all__ = ["CausalLM"]
__getattr__ = attributes_of(__name__, {"CausalLM": f"{__name__}.causal_lm"})
