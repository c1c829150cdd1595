"""Peak resident memory of this process, and training of selected parameters."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.harness.trainers import bare_trainer
from lightning_parablock.models import CausalLM

LORA_RANK = 16
TINY = (
    '{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,'
    ' "num_attention_heads": 2, "tie_word_embeddings": true}'
)
"""Configuration of a Llama of a few thousand parameters."""


def resident_bytes(field: str) -> int:
    """Memory of this process in bytes: VmRSS is the current value, VmHWM the peak. Raises RuntimeError."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: Linux is needed")


def train_only(module: nn.Module, names: tuple[str, ...]) -> int:
    """Make only these parameters trainable and return the size of their gradients in bytes."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def warm_up() -> None:
    """Import and start everything that training needs, on a negligibly small model."""
    importlib.import_module("peft")  # so that every method's base has the same imports
    module = CausalLM("none", architecture=TINY)
    ids = torch.zeros(1, 4, dtype=torch.long)
    batches: Any = 2 * [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    bare_trainer("auto", 2).fit(module, DataLoader(batches, batch_size=None))


def forget_peak() -> None:
    """Reset VmHWM to what is resident now, after returning free memory to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
