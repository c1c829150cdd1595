"""``python -m lightning_parablock``: the same as the command ``lightning-parablock``."""

from __future__ import annotations

import sys

from lightning_parablock.cli import main

if __name__ == "__main__":
    sys.exit(main())
