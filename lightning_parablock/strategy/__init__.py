"""The Lightning strategy: hooks of the Trainer on one side, the round engine on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.system.lazy import attributes_of

if TYPE_CHECKING:
    from lightning_parablock.strategy.parablock import ParaBlockStrategy

__all__ = ["ParaBlockStrategy"]

__getattr__ = attributes_of(__name__, {"ParaBlockStrategy": f"{__name__}.parablock"})
