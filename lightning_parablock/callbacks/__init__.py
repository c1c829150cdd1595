"""Callbacks: metrics of rounds and clients, a progress bar, a run's timeline, a model folder, a budget of bytes."""

from __future__ import annotations

from lightning_parablock.callbacks.byte_budget import ByteBudget
from lightning_parablock.callbacks.export import HuggingFaceExport
from lightning_parablock.callbacks.metrics import RoundMetrics
from lightning_parablock.callbacks.progress import RoundProgressBar
from lightning_parablock.callbacks.sight import ClientSight
from lightning_parablock.callbacks.timeline import Timeline

__all__ = ["ByteBudget", "ClientSight", "HuggingFaceExport", "RoundMetrics", "RoundProgressBar", "Timeline"]
