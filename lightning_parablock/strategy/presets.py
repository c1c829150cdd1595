"""Makes the strategy and its presets known to Lightning by name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "parablock": ("blocks exchanged behind the next round's local steps (arXiv 2511.19959)", {}),
    "fedbcd": ("federated block coordinate descent, waiting for every exchange", {"delay_steps": 0}),
    "fedavg": ("federated averaging: one block holding everything, waiting", {"blocks": 1, "delay_steps": 0}),
    "fedcybgd": (
        "a relay: one client per round trains the next block, and all wait for it (arXiv 2406.11706)",
        {"cohort": 1, "cohort_sampling": "rotation", "block_order": "sequential", "delay_steps": 0},
    ),
    "diloco": (
        "one block holding everything, many local steps, Nesterov's momentum on the server (arXiv 2311.08105)",
        {
            "blocks": 1,
            "delay_steps": 0,
            "local_steps": 500,
            "server_optimizer": "nesterov",
            "block_optimizer_state": "keep",
        },
    ),
}


class _Entry(dict[str, Any]):
    """An entry of Lightning's registry whose class is imported when it is looked up.

    Registration happens while Lightning is being imported, perhaps by the very module of the class.
    """

    def __missing__(self, key: str) -> Any:
        if key != "strategy":
            raise KeyError(key)
        from lightning_parablock.strategy.parablock import ParaBlockStrategy

        self[key] = ParaBlockStrategy
        return ParaBlockStrategy


def register() -> None:
    """Register every preset once; a second call does nothing."""
    for name, (description, options) in PRESETS.items():
        if name not in StrategyRegistry:
            StrategyRegistry[name] = _Entry(description=description, init_params=options, strategy_name=name)
