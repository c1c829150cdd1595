"""lightning-parablock: federated block coordinate fine-tuning under PyTorch Lightning, by one flag.

Importing this package registers the strategies "parablock", "fedbcd" (delay 0), "fedavg" (one block, delay 0) and
"diloco" (one block, Nesterov on the server), so that ``Trainer(strategy="parablock")`` works.
"""

from __future__ import annotations

from lightning_parablock.blocks import Block
from lightning_parablock.records import RoundRecord
from lightning_parablock.registration import register
from lightning_parablock.settings import (
    BF16,
    Int4,
    Int8,
    NoCompression,
    ServerAdam,
    ServerNesterov,
    ServerSGD,
    ServerYogi,
    TopK,
)
from lightning_parablock.strategy import ParaBlockStrategy

__version__ = "0.1.0"
__all__ = [
    "BF16",
    "Block",
    "Int4",
    "Int8",
    "NoCompression",
    "ParaBlockStrategy",
    "RoundRecord",
    "ServerAdam",
    "ServerNesterov",
    "ServerSGD",
    "ServerYogi",
    "TopK",
]

register()
