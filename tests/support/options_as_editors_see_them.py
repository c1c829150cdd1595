"""Checked by pyright, never run: the strategy's signature, which is made from fields, is visible to type checkers.

An ignore comment that ignores nothing is an error here, so each of these lines must go on being one.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from lightning_parablock import Int8, ParaBlockStrategy
from lightning_parablock.settings import Compression

ParaBlockStrategy(local_steps=4, delay_steps=None, blocks=["a"], compression=Int8(64), upload_bps=1e6, site="a")
ParaBlockStrategy(local_steps="auto", blocks=3, compression="int8", ports="40000-40099")
ParaBlockStrategy(local_stepz=4)  # pyright: ignore[reportCallIssue]
ParaBlockStrategy(4)  # pyright: ignore[reportCallIssue]
ParaBlockStrategy(local_steps="four")  # pyright: ignore[reportArgumentType]
ParaBlockStrategy(compression="int9")  # pyright: ignore[reportArgumentType]
ParaBlockStrategy(heartbeat_s=None)  # pyright: ignore[reportArgumentType]

assert_type(ParaBlockStrategy().settings.compression, Compression)
assert_type(ParaBlockStrategy().settings.local_steps, int)
