"""What the fork server of launch.py imports before it forks the first rank.

A strategy collects garbage before it opens a process group, which takes a quarter of a second with this many objects.
Frozen, they are looked at no more, here and in every rank.
"""

from __future__ import annotations

import gc
import importlib

from lightning_parablock.system.importing import quick_imports

with quick_imports():
    for name in ("torch._dynamo", "lightning_parablock.cli.trainer", "lightning_parablock.models.causal_lm"):
        importlib.import_module(name)
gc.collect()
gc.freeze()
