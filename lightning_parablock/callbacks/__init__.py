"""Callbacks: metrics of each round, a progress bar that shows rounds, and the timeline of a run."""

from __future__ import annotations

from lightning_parablock.callbacks.metrics import RoundMetrics
from lightning_parablock.callbacks.progress import RoundProgressBar
from lightning_parablock.callbacks.timeline import Timeline

__all__ = ["RoundMetrics", "RoundProgressBar", "Timeline"]
