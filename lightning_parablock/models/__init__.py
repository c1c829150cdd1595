"""Models: a LightningModule over transformers' causal language models, and how their weights come."""

from __future__ import annotations

from lightning_parablock.models.causal_lm import CausalLM

__all__ = ["CausalLM"]
