"""Callbacks: round and client metrics, progress bar, timeline, model export, prediction file, byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.system.lazy import attributes_of

if TYPE_CHECKING:
    from lightning_parablock.callbacks.byte_budget import ByteBudget
    from lightning_parablock.callbacks.export import HuggingFaceExport
    from lightning_parablock.callbacks.metrics import RoundMetrics
    from lightning_parablock.callbacks.predictions import PredictionFile
    from lightning_parablock.callbacks.progress import RoundProgressBar
    from lightning_parablock.callbacks.sight import ClientSight
    from lightning_parablock.callbacks.timeline import Timeline

__all__ = [
    "ByteBudget",
    "ClientSight",
    "HuggingFaceExport",
    "PredictionFile",
    "RoundMetrics",
    "RoundProgressBar",
    "Timeline",
]

# Imported at first use: reports read the names of logged figures from this package and must not need Lightning.
_MODULES = ("byte_budget", "sight", "export", "predictions", "metrics", "progress", "timeline")
__getattr__ = attributes_of(
    __name__, {name: f"{__name__}.{module}" for name, module in zip(__all__, _MODULES, strict=True)}
)
