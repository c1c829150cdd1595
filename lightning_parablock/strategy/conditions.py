"""What changes the bits of a site's training beside its data, its module, and the settings that all sites share.

With secure sums a resumed run must repeat its rounds with the same bits: where all sites but one do, the difference of
two sums is what that one has changed.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_parablock.launching.agreement import versions_here, versions_of
from lightning_parablock.settings import Settings

_CPU_FACTS = Path("/proc/cpuinfo")


def conditions_here(trainer: Trainer, device: torch.device, settings: Settings) -> dict[str, str]:
    """The conditions of this process, by name; they leave the site only in the message of one that refuses to begin."""
    values: Any = trainer
    schedules = [one.scheduling for one in values.callbacks if isinstance(one, GradientAccumulationScheduler)]
    own: dict[str, object] = {
        "own_local_steps": settings.own_local_steps,
        "precision": f"{trainer.precision} ({type(trainer.precision_plugin).__name__})",
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "accumulate_grad_batches": schedules or trainer.accumulate_grad_batches,
        "limit_train_batches": values.limit_train_batches,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": f"{_processor()} with {torch.backends.cpu.get_cpu_capability()}",
        "deterministic algorithms": _is_strict(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        own |= {
            "GPU": torch.cuda.get_device_name(device),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return {**versions_here(), **versions_of("numpy", "tokenizers"), **{name: str(one) for name, one in own.items()}}


def repeats_bits(device: torch.device) -> bool:
    """Whether the same computation on a device has the same bits again."""
    return device.type == "cpu" or _is_strict()


def _is_strict() -> bool:
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def _processor() -> str:
    """The model of the CPU: kernels are chosen, and sums are ordered, by what it can do."""
    try:
        lines = _CPU_FACTS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []  # another system than Linux
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
