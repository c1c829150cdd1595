"""Data of each client: sources, fixed partitions, token windows, and the text data module over them."""

from __future__ import annotations

from lightning_parablock.data.text import FederatedTextDataModule

__all__ = ["FederatedTextDataModule"]
