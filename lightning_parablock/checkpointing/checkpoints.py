"""The checkpoints of a run: one ordinary checkpoint for all ranks, and one sidecar for each.

A sidecar holds the rank's own version of everything in a Lightning checkpoint except the model (optimizer, schedulers,
loops, callbacks, precision), and what Lightning does not know, see ``resumed.py``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import __version__ as lightning_version  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.client_states import LIGHTNING, OWN, ClientStates, SavePoint, points_in_words
from lightning_parablock.checkpointing.plain import is_remote, read_checkpoint, save_plain, warn_of_foreign
from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.checkpointing.sidecars import (
    KEY,
    Entry,
    remove_sidecars,
    sidecar_path,
    write_sidecar,
)
from lightning_parablock.checkpointing.together import do_on_all, gather_from_all
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.system.places import is_name, refuse_unwritable

log = logging.getLogger(__name__)

_SHARED = ("state_dict", "hyper_parameters", "hparams_name", "hparams_type", KEY)
OF_ALL = (*_SHARED, "pytorch-lightning_version", "epoch", "global_step")
"""What is not the first rank's own in the checkpoint that it has saved."""


class Checkpoints:
    """Saves and loads the checkpoints of one run. Every method that is not a property is collective.

    Args:
        ranks: The ranks of the run.
        files: How Lightning writes and reads checkpoints.
        settings: The run's settings.
    """

    def __init__(self, ranks: Collectives, files: CheckpointIO, settings: Settings) -> None:
        self._ranks, self._files, self._settings = ranks, files, settings

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,
        own: Mapping[str, Any],
        blocks: Sequence[Block],
        storage_options: Any,
    ) -> None:
        """Write the sidecars, then the checkpoint that names them, then remove the sidecars of an older save.

        Where the clients' file names differ, as a metric in them may, all take the first rank's.

        Raises:
            CheckpointError: a client could not write, the clients are at different steps, or the first one's names lead
                out of the folder; the checkpoint that was at ``path`` before is still whole.
        """
        if is_remote(filepath):
            log.warning(
                "parablock: %s is not on a mounted disk: the committed model is saved, clients' state is not", filepath
            )
            save_plain(self._ranks, self._files, checkpoint, filepath, storage_options)
            return
        ranks, point = self._ranks, SavePoint(checkpoint["global_step"], own["engine"]["round"])
        proposal = (f"step{point.step:08d}-{uuid.uuid4().hex[:8]}", Path(filepath).name)
        proposals, points = zip(*ranks.gather_objects((proposal, point)), strict=True)
        if len(set(points)) > 1:
            raise CheckpointError(
                f"the clients save {filepath} at different points: {points_in_words(points, ranks)}; call "
                "save_checkpoint at the same step on all of them"
            )
        save, name = proposals[0]
        if not (is_name(save) and is_name(name)):
            raise CheckpointError(
                f"{ranks.describe(0)} names the save {save!r:.80} and its file {name!r:.80}: these lead out of the "
                "folder of checkpoints, so nothing is saved; install the same version at every site"
            )
        path = Path(filepath).with_name(name)
        sidecar = {LIGHTNING: {k: v for k, v in checkpoint.items() if k not in _SHARED}, OWN: dict(own)}
        warn_of_foreign(sidecar[LIGHTNING])
        sums = gather_from_all(
            ranks, lambda: write_sidecar(sidecar_path(path, save, ranks.global_rank), sidecar), "write"
        )
        weights = [value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)]
        entry = Entry(
            save=save,
            sidecars_sha256=sums,
            settings=self._settings.fingerprint(),
            blocks=[(block.name, block.numel) for block in blocks],
            round=point.round,
            weights_sha256=hash_tensors(weights) if ranks.global_rank == 0 else "",
            sites=ranks.site_names,
        )
        checkpoint[KEY] = entry.as_dict()
        do_on_all(ranks, lambda: save_plain(ranks, self._files, checkpoint, path, storage_options), "write")
        remove_sidecars(path, ranks.global_rank, keep_save=save)

    def check_folders(self, folders: Sequence[Path], refuse_foreign: Callable[[], object]) -> None:
        """Make sure, before the training, that every rank can write its part of checkpoints there, and may.

        Args:
            folders: The folders of checkpoints.
            refuse_foreign: Raises for one in which this rank does not let the first one put its part.

        Raises:
            CheckpointError: a rank cannot; sites whose run folders have different absolute paths, for one.
        """
        what = "the folder of checkpoints, the same path on every client,"

        def check() -> None:
            refuse_foreign()
            for folder in folders:
                refuse_unwritable(folder, what)

        do_on_all(self._ranks, check, "write")

    def remove(self, filepath: Any) -> None:
        """Remove a checkpoint and its sidecars; each rank those on its own disk. Not collective."""
        is_file = not is_remote(filepath) and not Path(filepath).is_symlink()
        if self._ranks.global_rank == 0:
            self._files.remove_checkpoint(filepath)
        if is_file:
            remove_sidecars(Path(filepath), self._ranks.global_rank)

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, path: Any, weights_only: bool | None, *, is_own: bool) -> dict[str, Any]:
        """The checkpoint at ``path``; ranks that do not have the file get it from the first one that has.

        Args:
            path: The file, or a URL.
            weights_only: False lets it hold any Python object.
            is_own: Whether this rank has named or found it; at a path that another one has sent nothing is opened.

        Raises:
            ConfigurationError: no rank has it, or it is no checkpoint of Lightning; the same error on every rank.
        """
        here = is_own and _exists(path)
        has = self._ranks.gather_objects(here)
        if not any(has):
            raise ConfigurationError(f"checkpoint {path} does not exist")
        checkpoint = do_on_all(self._ranks, lambda: self._read_main(path, weights_only) if here else None, "read")
        saves = self._ranks.gather_objects(_name_of(checkpoint))
        source = has.index(True)
        if any(save != saves[source] for save in saves):  # another save of the same name on a disk of its own, or none
            sent = self._ranks.broadcast(
                self._for_others(checkpoint) if self._ranks.global_rank == source else None, source
            )
            checkpoint = sent if saves[self._ranks.global_rank] != saves[source] else checkpoint
        assert checkpoint is not None
        return checkpoint

    def _for_others(self, checkpoint: dict[str, Any] | None) -> dict[str, Any] | None:
        """The first rank's own optimizer and callbacks stay, where sums are secure: each rank has its own sidecar."""
        if checkpoint is None or not isinstance(self._settings.aggregation, SecureAggregation):
            return checkpoint
        return {name: value for name, value in checkpoint.items() if name in OF_ALL}

    def _read_main(self, path: Any, weights_only: bool | None) -> dict[str, Any]:
        checkpoint = read_checkpoint(self._files, path, weights_only)
        checkpoint.setdefault("pytorch-lightning_version", lightning_version)  # Lightning asks for it
        return checkpoint

    def resume(
        self, checkpoint: dict[str, Any], filepath: Any, weights_only: bool | None = None, *, is_own: bool
    ) -> Resumed:
        """Overlay what :meth:`load` returned with this rank's own state; see :meth:`ClientStates.overlay`.

        Args:
            checkpoint: What :meth:`load` returned.
            filepath: Where it was.
            weights_only: False lets the sidecars hold any Python object, as it does for the checkpoint.
            is_own: As for :meth:`load`; the user has trusted no file at a path that another rank has sent.
        """
        weights_only = weights_only is not False or not is_own
        states = ClientStates(self._ranks, self._settings, weights_only=weights_only)
        return states.overlay(checkpoint, filepath)


def _exists(path: Any) -> bool:
    return is_remote(path) or Path(path).is_file()


def _name_of(checkpoint: Mapping[str, Any] | None) -> str | None:
    """What two ranks compare to know that they read the same checkpoint."""
    if checkpoint is None:
        return None
    entry: dict[str, Any] | None = checkpoint.get(KEY)
    return entry["save"] if entry is not None else f"step {checkpoint.get('global_step')}"
