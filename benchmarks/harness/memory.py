"""What both benchmarks of memory measure with: resident memory of this process, and how a method trains."""

from __future__ import annotations

from pathlib import Path

from torch import nn

LORA_RANK = 16


def resident_bytes(field: str) -> int:
    """Memory of this process: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: Linux is needed")


def train_only(module: nn.Module, names: tuple[str, ...]) -> int:
    """Let only these parameters train; bytes of their gradients."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
