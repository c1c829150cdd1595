"""One run of the command line on this rank: its folder, its manifest and its outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks.gather import gather_objects
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.runs.folder import (
    claim_run_folder,
    new_run_folder,
    refuse_run_folder,
    remove_if_empty,
    return_to_folder,
)
from lightning_parablock.runs.manifest import Manifest
from lightning_parablock.system.exit_codes import FAILED, USAGE
from lightning_parablock.system.places import reason

log = logging.getLogger(__name__)


class Run:
    """A run, as seen by this rank.

    Only the first rank creates the folder and writes the manifest; but where sites have names, every site has a folder
    and a manifest of its own, since its number is not known before the sites have met.

    Attributes:
        site: Name of this process's site, if it has one.
        comes_back: Whether the site may come back to its run, with the same command.
        folder: Path of the run's folder, the same on every rank once the trainer is set up; None before there is one.
        manifest: Manifest of the run; None before the run begins.
    """

    def __init__(self) -> None:
        # A guess until the trainer is set up. Lightning's own launcher on another node provides only the node's rank.
        self.rank: int = getattr(rank_zero_only, "rank", None) or int(os.environ.get("NODE_RANK", 0))
        self.site: str | None = None
        self.comes_back = False
        self.folder: Path | None = None
        self.manifest: Manifest | None = None

    def check_folder(self, run_dir: str | None, root: str | None) -> None:
        """Refuse a folder that :meth:`open_folder` could not use, before models and data are loaded.

        Raises:
            ConfigurationError: the folder cannot be created or written, or already has a run.
        """
        if self._has_folder:
            refuse_run_folder(run_dir, root, self.site or "", comes_back=self.comes_back)

    def open_folder(self, run_dir: str | None, root: str | None) -> Path:
        """Create the folder on the first rank; the others learn its name when the trainer is set up.

        A site's own folder is the subfolder with the site's name.

        Raises:
            ConfigurationError: the folder given by the user already has a run.
        """
        if self._has_folder:
            inside = self.site or ""
            if run_dir is None:
                self.folder = new_run_folder(root, inside)
            elif self.comes_back:
                self.folder = return_to_folder(Path(run_dir), inside)
            else:
                self.folder = claim_run_folder(Path(run_dir, inside))
            return self.folder
        return Path(run_dir or root or ".")

    def begin(self, facts: dict[str, Any]) -> None:
        """Write the first manifest: from here on the outcome of the run is recorded, whatever it is."""
        self.manifest = Manifest(self.folder if self._has_folder else None, facts)

    def finish(self) -> int:
        """Record that the run has finished; returns the exit code, that of a failure if it cannot be recorded."""
        return 0 if self._close("finished") else FAILED

    def interrupted(self, why: str, exit_code: int) -> int:
        """Record that the run was stopped from outside and report it in one line; returns the exit code."""
        self._say(f"interrupted: {why}")
        self._close(f"interrupted: {why}")
        return exit_code

    def failed(self, error: BaseException) -> int:
        """Report the error in one line and save the traceback in the run's folder; returns the exit code."""
        kept = self._keep_traceback(error)
        self._say(f"error: {error}" + (f" (traceback: {kept})" if kept else ""))
        self._close(f"failed: {error}")
        return USAGE if self.manifest is None and isinstance(error, ConfigurationError) else FAILED

    def crashed(self, error: BaseException) -> None:
        """Record an unexpected error; Python prints its traceback."""
        self._close(f"failed: {type(error).__name__}: {error}")

    @property
    def _has_folder(self) -> bool:
        return self.rank == 0 or self.site is not None

    def _say(self, line: str) -> None:
        # A single write, so that lines of several ranks are not interleaved.
        sys.stderr.write(" ".join(line.split()) + "\n")

    def _close(self, state: str) -> bool:
        """Record the outcome; False if the disk cannot be written, which must not hide the outcome itself."""
        try:
            if self.manifest is not None:
                self.manifest.close(state)
            elif self.folder is not None:
                remove_if_empty(self.folder)
                if self.site is not None:
                    remove_if_empty(self.folder.parent)
        except OSError as error:
            self._say(f"error: {self.folder} cannot be written ({reason(error)}), so the end is not recorded: {state}")
            return False
        return True

    def _keep_traceback(self, error: BaseException) -> Path | None:
        text = "".join(traceback.format_exception(error))
        log.debug("%s", text)
        if self.folder is None or self.manifest is None:
            return None
        path = self.folder / f"error-rank{self.rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError:  # a full or read-only disk must not hide the error itself, which is about to be reported
            return None
        return path


@contextlib.contextmanager
def first_rank() -> Generator[None]:
    """Let Lightning treat this process as the first rank: any site may turn out to be it once the sites have met."""
    guess = getattr(rank_zero_only, "rank", 0)
    setattr(rank_zero_only, "rank", 0)  # noqa: B010
    try:
        yield
    finally:
        setattr(rank_zero_only, "rank", guess)  # noqa: B010


class RunFacts(Callback):
    """Shares the run's folder with all ranks, and adds hosts and data of all ranks to the manifest.

    Args:
        run: The run.
        own_only: Do not share hosts and data between ranks: the manifest has only those of this rank.
    """

    def __init__(self, run: Run, own_only: bool = False) -> None:
        self._run, self._own_only = run, own_only

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._run.rank = trainer.global_rank
        if self._run.site is None:
            self._run.folder = Path(trainer.strategy.broadcast(str(self._run.folder)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = {"host": socket.gethostname(), "data": data_facts(trainer, own_only=self._own_only)}
        per_client = [own] if self._own_only else gather_objects(trainer.strategy, own)
        manifest = self._run.manifest
        if manifest is not None:
            manifest.add(
                site=self._run.site,
                sites=list(getattr(trainer.strategy, "site_names", ())),
                rank=trainer.global_rank,
                clients=getattr(trainer.strategy, "n_clients", trainer.world_size),
                ranks=trainer.world_size,
                hosts=[facts["host"] for facts in per_client],
                data=[facts["data"] for facts in per_client],
                strategy=strategy_facts(trainer.strategy),
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = rows_here(trainer)
        per_rank = [own] if self._own_only else gather_objects(trainer.strategy, own)
        if self._run.manifest is not None:
            self._run.manifest.add(rows=[line for lines in per_rank for line in lines])


def rows_here(trainer: Trainer) -> list[str]:
    """One line per client of this rank with the number of rows it trains on; empty if that is not known."""
    shown: list[str] = getattr(trainer.strategy, "rows_shown", [])
    describe = getattr(getattr(trainer, "datamodule", None), "describe", None)
    return shown or ([] if describe is None else list(describe().get("rows", ())))


def data_facts(trainer: Trainer, *, own_only: bool = False) -> dict[str, Any] | None:
    """The data module's description of this client's data, if it has one; without other clients' with ``own_only``."""
    module: Any = getattr(trainer, "datamodule", None)
    describe, fingerprint = (getattr(module, name, None) for name in ("describe", "train_fingerprint"))
    if describe is None and fingerprint is None:
        return None
    described: dict[str, Any] = describe() if describe is not None else {}
    if own_only:
        described = {name: value for name, value in described.items() if name != "rows_per_client"}
    return {**described, "train_fingerprint": fingerprint() if fingerprint is not None else None}


def strategy_facts(strategy: Any) -> dict[str, Any]:
    """Resolved settings and blocks of the strategy, if it has them."""
    settings = getattr(strategy, "settings", None)
    blocks = getattr(strategy, "blocks", None) or ()
    return {
        "class": f"{type(strategy).__module__}.{type(strategy).__qualname__}",
        "settings": settings.fingerprint() if settings is not None else None,
        "blocks": [{"name": block.name, "numel": block.numel} for block in blocks],
    }
