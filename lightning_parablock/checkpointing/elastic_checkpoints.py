"""Checkpoints of an elastic run: each site saves its own, alone, and any set of sites can continue from one of them.

Such a file is an ordinary Lightning checkpoint of W, from merged commits only. Under its own key it says in which round
it was saved, and where the trainers of all sites were at the start of that round. A run that continues from it begins
with that round, with nothing in flight: where the file was saved between two rounds, the earlier one is made again, on
top of what it had committed. What a site has of its own is not in it: local optimizer states, residuals,
server state, places in random streams. What the user's module, callbacks and data module have put into it is theirs
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.plain import is_remote, read_checkpoint
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.regroup.lineage import Lineage
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.system.reading import reading

KEY = "parablock_elastic"
_ADVICE = (
    "; if the module or a callback has put an object of its own into it, and you trust the file, fit with "
    "weights_only=False"
)
FORMAT = 1
_PROGRESS = ("loops", "optimizer_states", "lr_schedulers")
"""Lightning's keys that are of the moment at which it saved, while a run continues from the start of a round."""


@dataclass(frozen=True)
class ElasticEntry:
    """What a checkpoint records of the run that saved it.

    Attributes:
        round: The round that was running, with which a run begins that continues from it.
        trainer_state: Where the trainers were at its start.
        run: Id of the run.
        site: Name of the site that saved it.
        log: The membership log up to then.
        settings: The run's settings, printable.
        blocks: Name and number of scalars of each block, in order.
        weights_sha256: Checksum of W in the checkpoint.
        ancestors: Ids of the runs from which the run descends, oldest first: each one continued from a checkpoint of
            the one before, and the run from one of the last. Empty for a run that began anew.
    """

    round: int
    trainer_state: bytes
    run: str
    site: str
    log: MembershipLog
    settings: Mapping[str, str]
    blocks: tuple[tuple[str, int], ...]
    weights_sha256: str = ""
    ancestors: tuple[str, ...] = ()

    @property
    def lineage(self) -> Lineage:
        """The ancestors and the run itself."""
        return (*self.ancestors, self.run)

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint: tensors, strings, numbers, lists and dicts alone."""
        return {
            "format": FORMAT,
            "round": self.round,
            "trainer_state": torch.frombuffer(bytearray(self.trainer_state), dtype=torch.uint8),
            "run": self.run,
            "site": self.site,
            "log": self.log.to_json(),
            "settings": dict(self.settings),
            "blocks": [list(block) for block in self.blocks],
            "weights_sha256": self.weights_sha256,
            "ancestors": list(self.ancestors),
        }

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: str) -> ElasticEntry:
        """The entry in a checkpoint.

        Raises:
            ConfigurationError: it is no checkpoint of an elastic run.
            CheckpointError: another version of this package saved it, or it is damaged.
        """
        said: dict[str, Any] | None = checkpoint.get(KEY)
        if said is None:
            raise ConfigurationError(
                f"{path} was not saved by a run with elastic membership (lighthouse), and such a run continues from "
                "its own checkpoints alone; to start from these weights, load them into the module"
            )
        with reading(f"the entry of {path}", CheckpointError):
            return cls._from(said, checkpoint, path)

    @classmethod
    def _from(cls, said: Mapping[str, Any], checkpoint: Mapping[str, Any], path: str) -> ElasticEntry:
        if said["format"] != FORMAT:
            raise CheckpointError(
                f"{path} was saved in format {said['format']} of elastic checkpoints, this version reads {FORMAT}; use "
                "the version of lightning-parablock that saved it"
            )
        if _hash_of(checkpoint) != said["weights_sha256"]:
            raise CheckpointError(f"the weights in {path} are damaged (checksum); use an earlier checkpoint")
        return cls(
            round=int(said["round"]),
            trainer_state=said["trainer_state"].numpy().tobytes(),
            run=str(said["run"]),
            site=str(said["site"]),
            log=MembershipLog.from_json(said["log"]),
            settings={str(name): str(value) for name, value in said["settings"].items()},
            blocks=tuple((str(name), int(numel)) for name, numel in said["blocks"]),
            weights_sha256=str(said["weights_sha256"]),
            ancestors=tuple(str(run) for run in said.get("ancestors", ())),  # not in a file of an earlier version
        )

    def refuse_other_blocks(self, blocks: Sequence[Block]) -> None:
        """Raise a CheckpointError unless the model is cut into the same blocks as it was."""
        own = tuple((block.name, block.numel) for block in blocks)
        if own != self.blocks:
            raise CheckpointError(
                f"the checkpoint of site {self.site} was saved with the blocks {_listed(self.blocks)}, this run has "
                f"{_listed(own)}; make the same parameters trainable"
            )


def with_entry(checkpoint: Mapping[str, Any], entry: ElasticEntry) -> dict[str, Any]:
    """What Lightning saves, or its weights alone, with the entry of this site."""
    return {**checkpoint, KEY: {**entry.as_dict(), "weights_sha256": _hash_of(checkpoint)}}


def read_elastic(files: CheckpointIO, path: Any, weights_only: bool | None) -> dict[str, Any]:
    """The checkpoint at a path.

    Args:
        files: How Lightning reads checkpoints.
        path: The file, or a URL.
        weights_only: False lets it hold any Python object.

    Raises:
        ConfigurationError: it is not there, or is no checkpoint.
    """
    if not is_remote(path) and not Path(path).is_file():
        raise ConfigurationError(f"checkpoint {path} does not exist")
    return read_checkpoint(files, path, weights_only, advice=_ADVICE)


def without_progress(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a run takes of a checkpoint: all but the progress of Lightning's loops, which begin with a round."""
    kept = {name: value for name, value in checkpoint.items() if name not in _PROGRESS}
    return {**kept, "optimizer_states": [], "lr_schedulers": []}


def _hash_of(checkpoint: Mapping[str, Any]) -> str:
    return hash_tensors([value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)])


def _listed(blocks: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({numel})" for name, numel in blocks)
