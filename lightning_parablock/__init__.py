"""lightning-parablock: federated block coordinate fine-tuning in PyTorch Lightning, enabled by a single flag.

Importing this package registers the strategies "parablock", "fedbcd" (delay 0), "fedavg" (one block, delay 0) and
"diloco" (one block, Nesterov on the server), so that ``Trainer(strategy="parablock")`` works. Where Lightning has not
been imported yet, they are registered as soon as it is: the command line needs Lightning for training alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.system.lazy import after_import, attributes_of

if TYPE_CHECKING:
    from lightning_parablock.blocks.partition import Block
    from lightning_parablock.records import RoundRecord
    from lightning_parablock.settings import (
        BF16,
        Int4,
        Int8,
        LowRank,
        MeanAggregation,
        NoCompression,
        SecureAggregation,
        ServerAdam,
        ServerNesterov,
        ServerSGD,
        ServerYogi,
        Sparse,
        TopK,
    )
    from lightning_parablock.strategy.parablock import ParaBlockStrategy

__version__ = "0.1.0"
__all__ = [
    "BF16",
    "Block",
    "Int4",
    "Int8",
    "LowRank",
    "MeanAggregation",
    "NoCompression",
    "ParaBlockStrategy",
    "RoundRecord",
    "SecureAggregation",
    "ServerAdam",
    "ServerNesterov",
    "ServerSGD",
    "ServerYogi",
    "Sparse",
    "TopK",
]

_ELSEWHERE = {"Block": "blocks", "ParaBlockStrategy": "strategy", "RoundRecord": "records"}

__getattr__ = attributes_of(
    __name__, {name: f"lightning_parablock.{_ELSEWHERE.get(name, 'settings')}" for name in __all__}
)


def _register() -> None:
    from lightning_parablock.strategy.presets import register

    register()


after_import("lightning.pytorch", _register)
