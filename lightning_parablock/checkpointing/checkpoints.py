"""Saving and loading under the strategy: one ordinary checkpoint for all, one sidecar for each rank.

A sidecar holds the rank's own version of everything in a Lightning checkpoint but the model (optimizer, schedulers,
loops, callbacks, precision), and what Lightning does not know, see ``resumed.py``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import __version__ as lightning_version  # pyright: ignore[reportPrivateImportUsage]
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.formats import in_present_form
from lightning_parablock.checkpointing.plain_values import first_foreign, numpy_numbers
from lightning_parablock.checkpointing.resumed import Resumed, is_remote, save_plain
from lightning_parablock.checkpointing.sidecars import (
    KEY,
    Entry,
    read_sidecar,
    remove_sidecars,
    sidecar_path,
    what_was_foreign,
    write_sidecar,
)
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.settings import AUTO, Settings
from lightning_parablock.system.places import refuse_unwritable

log = logging.getLogger(__name__)
T = TypeVar("T")

LIGHTNING, OWN = "lightning", "own"
_warned = set[tuple[str, str]]()
_SHARED = ("state_dict", "hyper_parameters", "hparams_name", "hparams_type", KEY)
_PATH_ONLY = (
    "exchange_timeout_s",
    "straggler_timeout_s",
    "heartbeat_s",
    "chunk_bytes",
    "topology",
    "missing_client_state",
    "nonfinite_delta",
)
"""Settings that change no bit of what a checkpoint holds: a run may continue with others."""


class SavePoint(NamedTuple):
    """Where a client was when it saved: all sidecars of a checkpoint are of the same point."""

    step: int
    round: int


class Checkpoints:
    """Saves and loads the checkpoints of one run. Every method that is not a property is collective.

    Args:
        ranks: The ranks of the run.
        files: How Lightning writes and reads checkpoints.
        settings: The run's settings.
    """

    def __init__(self, ranks: Collectives, files: CheckpointIO, settings: Settings) -> None:
        self._ranks, self._files, self._settings = ranks, files, settings
        self._weights_only = True

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
            CheckpointError: a client could not write, or the clients are at different steps; the checkpoint that was at
                ``path`` before is still whole.
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
                f"the clients save {filepath} at different points: {self._listed(points)}; call save_checkpoint at the "
                "same step on all of them"
            )
        save, name = proposals[0]
        path = Path(filepath).with_name(name)
        sidecar = {LIGHTNING: {k: v for k, v in checkpoint.items() if k not in _SHARED}, OWN: dict(own)}
        _warn_of_foreign(sidecar[LIGHTNING])
        sums = self._all(lambda: write_sidecar(sidecar_path(path, save, ranks.global_rank), sidecar), "write")
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
        self._all(lambda: save_plain(ranks, self._files, checkpoint, path, storage_options), "write")
        remove_sidecars(path, ranks.global_rank, keep_save=save)

    def check_folders(self, folders: Sequence[Path]) -> None:
        """Make sure, before the training, that every rank can write its part of checkpoints there.

        Raises:
            CheckpointError: a rank cannot; sites whose run folders have different absolute paths, for one.
        """
        what = "the folder of checkpoints, the same path on every client,"
        self._all(lambda: [refuse_unwritable(folder, what) for folder in folders], "write", gather=False)

    def remove(self, filepath: Any) -> None:
        """Remove a checkpoint and its sidecars; each rank those on its own disk. Not collective."""
        is_file = not is_remote(filepath) and not Path(filepath).is_symlink()
        if self._ranks.global_rank == 0:
            self._files.remove_checkpoint(filepath)
        if is_file:
            remove_sidecars(Path(filepath), self._ranks.global_rank)

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, path: Any, weights_only: bool | None) -> dict[str, Any]:
        """The checkpoint at ``path``; ranks that do not have the file get it from the first one that has.

        Raises:
            ConfigurationError: nobody has it, or it is no checkpoint of Lightning; the same error on every rank.
        """
        here = _exists(path)
        has = self._ranks.gather_objects(here)
        if not any(has):
            raise ConfigurationError(f"checkpoint {path} does not exist")
        checkpoint = self._all(lambda: self._read_main(path, weights_only) if here else None, "read", gather=False)
        saves = self._ranks.gather_objects(_name_of(checkpoint))
        source = has.index(True)
        if any(save != saves[source] for save in saves):  # another save of the same name on a disk of its own, or none
            sent = self._ranks.broadcast(checkpoint if self._ranks.global_rank == source else None, source)
            checkpoint = sent if saves[self._ranks.global_rank] != saves[source] else checkpoint
        assert checkpoint is not None
        return checkpoint

    def _read_main(self, path: Any, weights_only: bool | None) -> dict[str, Any]:
        try:
            with numpy_numbers():
                checkpoint: Any = self._files.load_checkpoint(path, weights_only=weights_only)
        except Exception as error:
            raise ConfigurationError(f"{path} cannot be read as a checkpoint: {what_was_foreign(error)}") from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ConfigurationError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
        checkpoint.setdefault("pytorch-lightning_version", lightning_version)  # Lightning asks for it
        return checkpoint

    def resume(self, checkpoint: dict[str, Any], filepath: Any, weights_only: bool | None = None) -> Resumed:
        """Overlay the checkpoint with this rank's own state, in place, and return what Lightning does not restore.

        Args:
            checkpoint: What :meth:`load` returned.
            filepath: Where it was.
            weights_only: False lets the sidecars hold any Python object, as it does for the checkpoint.

        Raises:
            CheckpointError: the clients' state is not whole, or is another run's; see ``missing_client_state``.
        """
        self._weights_only = weights_only is not False
        path = Path(filepath).resolve()  # a link such as last.ckpt has its sidecars beside its target
        entry = Entry.of(checkpoint, str(filepath))
        if entry is None:
            why = "it was saved by another strategy, after a failure, or with the weights alone"
            return self._fresh(checkpoint, entry, {}, f"{filepath} has no clients' state beside it: {why}")
        self._check_weights(checkpoint, entry, path)
        if entry.n_ranks != self._ranks.world_size:
            log.warning(
                "parablock: %s was saved by %d clients, and %d go on: the committed model, the server's state and the "
                "number of the round (%d) go on, the clients' own state starts fresh",
                *(path, entry.n_ranks, self._ranks.world_size, entry.round),
            )
            return self._fresh(checkpoint, entry, self._sidecars(entry, path, range(entry.n_ranks)), None)
        sidecars = self._sidecars(entry, path, [self._ranks.global_rank])
        problem = self._first_problem(entry, path, sidecars)
        if problem is not None:
            return self._fresh(checkpoint, entry, self._sidecars(entry, path, range(entry.n_ranks)), problem)
        sidecar = sidecars[self._ranks.global_rank]
        checkpoint.update(sidecar[LIGHTNING])
        states = checkpoint["optimizer_states"]
        return Resumed(entry.round, sidecar[OWN], optimizer_states=states, blocks=entry.blocks)

    def _check_weights(self, checkpoint: Mapping[str, Any], entry: Entry, path: Path) -> None:
        weights = [value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)]
        if hash_tensors(weights) != entry.weights_sha256:
            raise CheckpointError(f"the weights in {path} are damaged (checksum); use an earlier checkpoint")

    def _first_problem(self, entry: Entry, path: Path, sidecars: Mapping[int, Any]) -> str | None:
        """Why some client cannot go on exactly; the same answer on every rank."""
        now = self._settings.fingerprint()
        for name, value in entry.settings.items():
            if name not in _PATH_ONLY and now.get(name) != value:
                return f"{path} was saved with {name}={value}, this run has {now.get(name)}"
        sites = self._ranks.site_names
        if entry.format > 2 and entry.sites != sites:  # format 2 knows of no sites
            saved_by, here = (
                f"the sites {', '.join(names)}" if names else "clients without site names"
                for names in (entry.sites, sites)
            )
            return f"{path} was saved by {saved_by}, and this run has {here}"
        rank = self._ranks.global_rank
        problem, point = None, None
        if rank not in sidecars:
            try:
                self._read_sidecar(entry, path, rank)
            except CheckpointError as error:
                problem = f"{self._ranks.describe(rank)}: {error}"
        else:
            point = SavePoint(sidecars[rank][LIGHTNING]["global_step"], sidecars[rank][OWN]["engine"]["round"])
        problems, points = zip(*self._ranks.gather_objects((problem, point)), strict=True)
        found: str | None = next((problem for problem in problems if problem is not None), None)
        if found is None and len(set(points)) > 1:
            return f"the clients' states beside {path} do not belong together: {self._listed(points)}"
        return found

    def _sidecars(self, entry: Entry, path: Path, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Those of the wanted sidecars that this rank can read."""
        found: dict[int, dict[str, Any]] = {}
        for rank in wanted:
            try:
                found[rank] = self._read_sidecar(entry, path, rank)
            except CheckpointError as error:
                log.debug("%s", error)
        return found

    def _read_sidecar(self, entry: Entry, path: Path, rank: int) -> dict[str, Any]:
        file = sidecar_path(path, entry.save, rank)
        sidecar = read_sidecar(file, entry.sidecars_sha256[rank], weights_only=self._weights_only)
        return {**sidecar, OWN: in_present_form(sidecar[OWN], entry.format)}

    def _listed(self, points: Sequence[SavePoint]) -> str:
        return "; ".join(
            f"{self._ranks.describe(rank)} at step {point.step} (round {point.round})"
            for rank, point in enumerate(points)
        )

    def _fresh(
        self, checkpoint: dict[str, Any], entry: Entry | None, sidecars: Mapping[int, Any], problem: str | None
    ) -> Resumed:
        """Committed model, server state and round go on; every client begins its round anew."""
        if problem is not None:
            if self._settings.missing_client_state == "error":
                raise CheckpointError(
                    f"{problem}; to go on from the committed model with fresh client state, set "
                    "missing_client_state='fresh'"
                )
            log.warning("parablock: %s: the clients' own state starts fresh", problem)
        for state in checkpoint.setdefault("optimizer_states", []):
            state["state"] = {}
        checkpoint.setdefault("lr_schedulers", [])  # a file with the weights alone has none: they start anew
        if entry is None:
            return Resumed(0, None)
        return Resumed(entry.round, None, self._server_pieces(entry, sidecars), blocks=entry.blocks)

    def _server_pieces(self, entry: Entry, sidecars: Mapping[int, Any]) -> list[dict[str, Any]]:
        """The server's state from all old ranks, wherever their sidecars are."""
        pieces: list[dict[str, Any]] = []
        who_has = self._ranks.gather_objects(sorted(sidecars))
        for old_rank in range(entry.n_ranks):
            holders = [rank for rank, held in enumerate(who_has) if old_rank in held]
            if not holders:
                log.warning(
                    "parablock: the state of old client %d is nowhere: its part of the server's is zero", old_rank
                )
                continue
            own: list[dict[str, Any]] = []
            if old_rank in sidecars:
                own = sidecars[old_rank][OWN]["engine"]["server"]
            pieces += own if len(holders) == len(who_has) else self._ranks.broadcast(own, holders[0])
        return pieces

    # --- inside -------------------------------------------------------------------------------------------------------

    def _all(self, work: Callable[[], T], verb: str, *, gather: bool = True) -> Any:
        """The work's results, in rank order; where it failed on one rank, the same error on all."""
        result, problem = None, None
        try:
            result = work()
        except Exception as error:  # whatever it is: the others wait for this rank's part
            kind = "" if isinstance(error, (OSError, ConfigurationError)) else f"{type(error).__name__}: "
            problem = f"{self._ranks.describe(self._ranks.global_rank)}: {kind}{error}"
        problems = [found for found in self._ranks.gather_objects(problem) if found is not None]
        if problems:
            raise CheckpointError(f"a client cannot {verb} its part of a checkpoint: {'; '.join(problems)}")
        return self._ranks.gather_objects(result) if gather else result


def settled_by(checkpoint: Mapping[str, Any], filepath: Any, settings: Settings) -> Settings:
    """The settings with the number of local steps of a checkpoint, where the clients have yet to agree on it.

    A checkpoint from before they agreed says "auto", too, and the resumed run agrees then.
    """
    entry = Entry.of(checkpoint, str(filepath))
    if not settings.pending or entry is None or entry.settings["local_steps"] == repr(AUTO):
        return settings
    local_steps = int(entry.settings["local_steps"])
    rank_zero_info(f"parablock: local_steps: {local_steps}, on which the clients of {filepath} had agreed")
    return settings.agreed(local_steps)


def _warn_of_foreign(state: Mapping[str, Any]) -> None:
    found = first_foreign(state)
    if found is not None and found not in _warned:
        _warned.add(found)
        log.warning(
            "parablock: %s in the checkpoint is a %s: resuming needs weights_only=False; keep tensors and plain values "
            "there to avoid it",
            *found,
        )


def _exists(path: Any) -> bool:
    return is_remote(path) or Path(path).is_file()


def _name_of(checkpoint: Mapping[str, Any] | None) -> str | None:
    """What two ranks compare to know that they read the same checkpoint."""
    if checkpoint is None:
        return None
    entry: dict[str, Any] | None = checkpoint.get(KEY)
    return entry["save"] if entry is not None else f"step {checkpoint.get('global_step')}"
