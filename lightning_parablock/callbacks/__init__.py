"""Callbacks: metrics of each round and client, a progress bar, the timeline of a run, a Hugging Face folder."""

from __future__ import annotations

from lightning_parablock.callbacks.export import HuggingFaceExport
from lightning_parablock.callbacks.metrics import RoundMetrics
from lightning_parablock.callbacks.progress import RoundProgressBar
from lightning_parablock.callbacks.sight import ClientSight
from lightning_parablock.callbacks.timeline import Timeline

__all__ = ["ClientSight", "HuggingFaceExport", "RoundMetrics", "RoundProgressBar", "Timeline"]
