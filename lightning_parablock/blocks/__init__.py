"""Which parameters form which block, and a block as one contiguous buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.system.lazy import attributes_of

if TYPE_CHECKING:
    from lightning_parablock.blocks.partition import Block

__all__ = ["Block"]

__getattr__ = attributes_of(__name__, {"Block": f"{__name__}.partition"})
