"""Makes the strategy and its presets known to Lightning by name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from lightning_parablock.strategy import ParaBlockStrategy

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "parablock": ("blocks exchanged behind the next round's local steps (arXiv 2511.19959)", {}),
    "fedbcd": ("federated block coordinate descent, waiting for every exchange", {"delay_steps": 0}),
    "fedavg": ("federated averaging: one block holding everything, waiting", {"blocks": 1, "delay_steps": 0}),
}


def register() -> None:
    """Register every preset once; a second call does nothing."""
    for name, (description, options) in PRESETS.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, ParaBlockStrategy, description=description, **options)
