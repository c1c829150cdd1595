"""Saving and loading under the strategy: one ordinary checkpoint for all, one sidecar for each rank.

A sidecar holds the rank's own version of everything in a Lightning checkpoint but the model (optimizer, schedulers,
loops, callbacks, precision), and what Lightning does not know, see ``client_state.py``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_parablock.blocks import Block
from lightning_parablock.checkpoint import (
    KEY,
    Entry,
    read_sidecar,
    remove_sidecars,
    sidecar_path,
    write_sidecar,
)
from lightning_parablock.client_state import Resumed, is_remote, save_plain
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.flat import hash_tensors
from lightning_parablock.ranks import WatchedStrategy
from lightning_parablock.settings import AUTO, Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

LIGHTNING, OWN = "lightning", "own"
_SHARED = ("state_dict", "hyper_parameters", "hparams_name", "hparams_type", KEY)
_PATH_ONLY = (
    "exchange_timeout_s",
    "straggler_timeout_s",
    "heartbeat_s",
    "chunk_bytes",
    "topology",
    "missing_client_state",
)
"""Settings that change no bit of the result: a run may go on with others."""


class Checkpoints:
    """Saves and loads the checkpoints of one run. Every method that is not a property is collective.

    Args:
        ranks: The ranks of the run.
        settings: The run's settings.
    """

    def __init__(self, ranks: WatchedStrategy, settings: Settings) -> None:
        self._ranks, self._files, self._settings = ranks, ranks.checkpoint_io, settings

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

        Raises:
            CheckpointError: a client could not write; the checkpoint that stood at ``path`` is still whole.
        """
        if is_remote(filepath):
            log.warning(
                "parablock: %s is not on a mounted disk: the committed model is saved, clients' state is not", filepath
            )
            save_plain(self._ranks, checkpoint, filepath, storage_options)
            return
        ranks, path = self._ranks, Path(filepath)
        save = ranks.broadcast(f"step{checkpoint['global_step']:08d}-{uuid.uuid4().hex[:8]}")
        sidecar = {LIGHTNING: {k: v for k, v in checkpoint.items() if k not in _SHARED}, OWN: dict(own)}
        sums = self._all(lambda: write_sidecar(sidecar_path(path, save, ranks.global_rank), sidecar), "write")
        weights = [value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)]
        entry = Entry(
            save=save,
            sidecars_sha256=sums,
            settings=self._settings.fingerprint(),
            blocks=[(block.name, block.numel) for block in blocks],
            round=own["engine"]["round"],
            weights_sha256=hash_tensors(weights) if ranks.global_rank == 0 else "",
        )
        checkpoint[KEY] = entry.as_dict()
        self._all(lambda: save_plain(ranks, checkpoint, path, storage_options), "write")
        remove_sidecars(path, ranks.global_rank, keep_save=save)

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
            checkpoint = self._files.load_checkpoint(path, weights_only=weights_only)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigurationError(
                f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason}"
            ) from error
        if "state_dict" not in checkpoint:
            raise ConfigurationError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
        return checkpoint

    def resume(self, checkpoint: dict[str, Any], filepath: Any) -> Resumed:
        """Lay this rank's own state over the checkpoint, in place, and return what Lightning does not restore.

        Raises:
            CheckpointError: the clients' state is not whole, or is another run's; see ``missing_client_state``.
        """
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
        rank = self._ranks.global_rank
        problem: str | None = None
        if rank not in sidecars:
            try:
                read_sidecar(sidecar_path(path, entry.save, rank), entry.sidecars_sha256[rank])
            except Exception as error:
                problem = f"{self._ranks.describe(rank)}: {error}"
        return next((found for found in self._ranks.gather_objects(problem) if found is not None), None)

    def _sidecars(self, entry: Entry, path: Path, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Those of the wanted sidecars that this rank can read."""
        found: dict[int, dict[str, Any]] = {}
        for rank in wanted:
            try:
                found[rank] = read_sidecar(sidecar_path(path, entry.save, rank), entry.sidecars_sha256[rank])
            except CheckpointError as error:
                log.debug("%s", error)
        return found

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
        for state in checkpoint.get("optimizer_states", []):
            state["state"] = {}
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
        except (OSError, ConfigurationError) as error:
            problem = f"{self._ranks.describe(self._ranks.global_rank)}: {error}"
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


def _exists(path: Any) -> bool:
    return is_remote(path) or Path(path).is_file()


def _name_of(checkpoint: Mapping[str, Any] | None) -> str | None:
    """What two ranks compare to know that they read the same checkpoint."""
    if checkpoint is None:
        return None
    entry: dict[str, Any] | None = checkpoint.get(KEY)
    return entry["save"] if entry is not None else f"step {checkpoint.get('global_step')}"
