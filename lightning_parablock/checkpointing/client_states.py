"""The clients' states beside a checkpoint: whether a run continues from them exactly, or with fresh ones."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.checkpointing.formats import in_present_form
from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.checkpointing.sidecars import Entry, read_sidecar, sidecar_path
from lightning_parablock.errors import CheckpointError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.options import options_of
from lightning_parablock.settings import AUTO, COMPRESSIONS, Compression, SecureAggregation, Settings, option_word
from lightning_parablock.settings.secure import NEW_FIT_ALONE
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

LIGHTNING, OWN = "lightning", "own"
"""Keys of a sidecar: what Lightning saves, of this rank; and what it does not know, see ``resumed.py``."""

PATH_ONLY = (
    *(option.name for option in options_of(Settings) if option.kind == "path"),
    "missing_client_state",
    "nonfinite_delta",
)
"""Settings that change no bit of what a checkpoint holds: a run may continue with others."""


class SavePoint(NamedTuple):
    """Where a client was when it saved: all sidecars of a checkpoint are of the same point."""

    step: int
    round: int


def points_in_words(points: Sequence[SavePoint], ranks: Collectives) -> str:
    """Where each client was, in rank order."""
    return "; ".join(
        f"{ranks.describe(rank)} at step {point.step} (round {point.round})" for rank, point in enumerate(points)
    )


class ClientStates:
    """Reads the sidecars of a checkpoint.

    Args:
        ranks: The ranks of the run.
        settings: The run's settings.
        weights_only: Whether the sidecars may hold nothing but tensors and plain values.
    """

    def __init__(self, ranks: Collectives, settings: Settings, *, weights_only: bool) -> None:
        self._ranks, self._settings, self._weights_only = ranks, settings, weights_only

    def overlay(self, checkpoint: dict[str, Any], filepath: Any) -> Resumed:
        """Overlay the checkpoint with this rank's own state, in place, and return what Lightning does not restore.

        Collective.

        Args:
            checkpoint: The same on every rank.
            filepath: Where it was.

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
            if self._are_secure:
                now = self._ranks.world_size
                return self._fresh(checkpoint, entry, {}, f"{entry.n_ranks} sites saved {path}, and {now} continue")
            log.warning(
                "parablock: %s was saved by %d clients, and %d continue: the committed model, the server's state and "
                "the number of the round (%d) are kept, the clients' own state starts fresh",
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

    @property
    def _are_secure(self) -> bool:
        return isinstance(self._settings.aggregation, SecureAggregation)

    def _check_weights(self, checkpoint: Mapping[str, Any], entry: Entry, path: Path) -> None:
        weights = [value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)]
        if hash_tensors(weights) != entry.weights_sha256:
            raise CheckpointError(f"the weights in {path} are damaged (checksum); use an earlier checkpoint")

    def _first_problem(self, entry: Entry, path: Path, sidecars: Mapping[int, Any]) -> str | None:
        """Why a client cannot continue exactly; the same answer on every rank."""
        now = self._settings.fingerprint()
        for name, value in entry.settings.items():
            if name not in PATH_ONLY and now.get(name) != value:
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
            return f"the clients' states beside {path} do not belong together: {points_in_words(points, self._ranks)}"
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

    def _fresh(
        self, checkpoint: dict[str, Any], entry: Entry | None, sidecars: Mapping[int, Any], problem: str | None
    ) -> Resumed:
        """Continue with the committed model, the server's state and the round; every client begins its round again."""
        if problem is not None:
            if self._are_secure:
                raise CheckpointError(f"{problem}; {NEW_FIT_ALONE}")
            if self._settings.missing_client_state == "error":
                raise CheckpointError(
                    f"{problem}; to continue from the committed model with fresh client state, set "
                    "missing_client_state='fresh'"
                )
            log.warning("parablock: %s: the clients' own state starts fresh", problem)
        for state in checkpoint.setdefault("optimizer_states", []):
            state["state"] = {}
        checkpoint.setdefault("lr_schedulers", [])  # a file with the weights alone has none: they start fresh
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
                    "parablock: the state of old client %d was not found: its part of the server's state is zero",
                    old_rank,
                )
                continue
            own: list[dict[str, Any]] = []
            if old_rank in sidecars:
                own = sidecars[old_rank][OWN]["engine"]["server"]
            pieces += own if len(holders) == len(who_has) else self._ranks.broadcast(own, holders[0])
        return pieces


def settled_by(checkpoint: Mapping[str, Any], filepath: Any, settings: Settings) -> Settings:
    """The settings with what the clients of a checkpoint had agreed on, where they have yet to agree on it.

    A checkpoint from before they agreed in round 0 says "auto", too, and the resumed run agrees then.
    """
    entry = Entry.of(checkpoint, str(filepath))
    if entry is None:
        return settings
    saved, told = entry.settings, list[str]()
    if settings.blocks == AUTO:
        settings = settings.with_blocks(saved_blocks(saved, filepath))
        told.append(f"blocks: {len(entry.blocks)}")
    if "local_steps" in settings.pending and saved["local_steps"] != repr(AUTO):
        settings = settings.agreed(local_steps=int(saved["local_steps"]))
        told.append(f"local_steps: {settings.local_steps}")
    if "compression" in settings.pending and saved["compression"] != repr(AUTO):
        settings = settings.agreed(compression=saved_compression(saved, filepath))
        told.append(f"compression: {option_word(settings.compression)}")
    if told:
        rank_zero_info(f"parablock: {', '.join(told)}, on which the clients of {filepath} had agreed")
    return settings


def saved_blocks(saved: Mapping[str, str], filepath: Any) -> str | int | tuple[str, ...]:
    """The option ``blocks`` of a run, as its checkpoint says it.

    Raises:
        CheckpointError: it is damaged.
    """
    with reading(f"the option blocks in {filepath}", CheckpointError):
        blocks = ast.literal_eval(saved["blocks"])
        if not isinstance(blocks, str | int | tuple):
            raise TypeError(f"{blocks!r:.40} cuts no model")
        return blocks


def saved_compression(saved: Mapping[str, str], filepath: Any) -> Compression:
    """The option ``compression`` of a run, as its checkpoint says it.

    Raises:
        CheckpointError: it is damaged.
    """
    kinds = {kind.__name__: kind for kind in COMPRESSIONS.values()}
    with reading(f"the option compression in {filepath}", CheckpointError):
        made: Any = ast.parse(saved["compression"], mode="eval").body
        settings = {each.arg: ast.literal_eval(each.value) for each in made.keywords}
        return kinds[made.func.id](*map(ast.literal_eval, made.args), **settings)
