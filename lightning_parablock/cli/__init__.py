"""The command line ``lightning-parablock``."""

from lightning_parablock.cli.entry import main

__all__ = ["main"]
