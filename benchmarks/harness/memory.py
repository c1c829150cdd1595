"""What both memory benchmarks use: resident memory of this process, and training of selected parameters."""

from __future__ import annotations

from pathlib import Path

from torch import nn

LORA_RANK = 16


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
