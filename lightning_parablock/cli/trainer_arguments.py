"""What the command line adds to the Trainer's arguments: processes, run folder, logger and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_parablock.callbacks import ClientSight, RoundMetrics, RoundProgressBar, Timeline
from lightning_parablock.callbacks.predictions import PredictionFile
from lightning_parablock.callbacks.sight import Shared
from lightning_parablock.cli.sharing import SharesNoMore, refuse_more_shared
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.launched import launched_devices
from lightning_parablock.lightning_private.processes import starts_functions
from lightning_parablock.runs.folder import folder_of_runs
from lightning_parablock.runs.run import Run, RunFacts
from lightning_parablock.runs.site_files import SiteCSVLogger

PREDICTIONS_NAME = "predictions.jsonl"


@dataclass(frozen=True)
class Observers:
    """The callbacks that record a run.

    Attributes:
        callbacks: All of them, in order; to be appended to those that :func:`with_progress` returns.
        timeline: Collects the records of the rounds.
        predictions: Writes the predictions; None where no file of ours is wanted.
        own_only: Whether the records are those of this rank's clients alone.
    """

    callbacks: tuple[Callback, ...]
    timeline: Timeline
    predictions: PredictionFile | None
    own_only: bool


def with_progress(given: Namespace) -> list[Callback]:
    """The user's callbacks and, unless they list their own, a progress bar and the rounds' metrics.

    Args:
        given: The arguments of the Trainer.
    """
    listed: Any = given.callbacks or []
    callbacks = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(RoundProgressBar())
    if not any(isinstance(c, RoundMetrics) for c in callbacks):
        callbacks.append(RoundMetrics())
    return callbacks


def observers(run: Run, shared: Shared, listed: Sequence[Callback], predictions: PredictionFile | None) -> Observers:
    """The callbacks that record a run.

    Args:
        run: The run, whose folder is known.
        shared: What each client shares besides its deltas.
        listed: The callbacks that there are already.
        predictions: Writes the predictions, if a file of ours is wanted.

    Raises:
        ConfigurationError: a listed callback shares more than ``shared`` allows.
    """
    sights = [callback for callback in listed if isinstance(callback, ClientSight)]
    own = [] if sights else [ClientSight(shared, folder=_site_folder(run))]
    refuse_more_shared(shared, listed)
    own_only = any(sight.shared != "clients" for sight in sights or own)
    timeline = Timeline(_site_folder(run, outer=True), own_only=own_only)
    writers = [] if predictions is None else [predictions]
    recorded = (*own, RunFacts(run, own_only), timeline, *writers)
    return Observers((SharesNoMore(shared), *recorded), timeline, predictions, own_only)


def prediction_file(
    run: Run, output: str | None, listed: Sequence[Callback], *, is_trial: bool
) -> PredictionFile | None:
    """The file of the command ``predict``, unless the user has a writer of their own and names no file.

    Args:
        run: The run, in whose folder the file is written by default.
        output: The file that the user names.
        listed: The callbacks that there are already.
        is_trial: Whether the Trainer only tries a batch and keeps nothing (``fast_dev_run``).
    """
    if output is not None:
        return PredictionFile(Path(output).expanduser())
    if is_trial or any(isinstance(callback, BasePredictionWriter) for callback in listed):
        return None
    return PredictionFile(lambda: Path(run.folder or ".", PREDICTIONS_NAME))


def processes(given: Namespace, strategy_options: Any) -> dict[str, Any]:
    """Number of processes where the user leaves it open; Lightning would take one on a machine without a GPU.

    Args:
        given: The arguments of the Trainer.
        strategy_options: The options of the strategy; anything that is empty for a strategy without options.
    """
    if given.devices != "auto":
        return {}
    options: Any = strategy_options or {}
    started = launched_devices() if options.get("rendezvous") is None else {}  # no launcher counts the sites
    return started or ({"devices": 1} if options.get("site") is not None else {})


def run_folder_arguments(run: Run, run_dir: str | None, given: Namespace) -> dict[str, Any]:
    """Create the run's folder; the Trainer writes there, and logs there unless the user has a logger.

    Args:
        run: The run.
        run_dir: The folder that the user names.
        given: The arguments of the Trainer.

    Raises:
        ConfigurationError: the folder holds a run already.
    """
    folder = run.open_folder(run_dir, given.default_root_dir)
    arguments: dict[str, Any] = {"default_root_dir": str(folder)}
    if given.logger is None or given.logger is True:
        kind = CSVLogger if run.site is None else SiteCSVLogger
        logger = arguments["logger"] = kind(folder.parent, name="", version=folder.name)
        # Opened while the folder is empty: it warns of, and removes, what an earlier run left.
        _ = logger.experiment
    return arguments


def keep_notes(trainer: Trainer, run_dir: str | None, given: Namespace) -> None:
    """Let a site of an elastic run note the run where its next start finds the note; its run folder is a new one then.

    Args:
        trainer: The trainer.
        run_dir: The folder that the user names.
        given: The arguments of the Trainer.
    """
    strategy: Any = trainer.strategy
    strategy.notes_folder = folder_of_runs(run_dir, given.default_root_dir)


def refuse_forks(trainer: Trainer) -> Trainer:
    """Measuring and training are two launches, and what a forked process logs and records stays in it.

    Raises:
        ConfigurationError: the strategy starts processes that are no whole programs.
    """
    if starts_functions(trainer.strategy):
        raise ConfigurationError(
            "the command line starts its processes as whole programs: leave start_method at 'popen'; the others are "
            "for notebooks and scripts"
        )
    return trainer


def _site_folder(run: Run, *, outer: bool = False) -> str | None:
    """The run folder where each site has one of its own, or the folder of it; else None."""
    if run.site is None or run.folder is None:
        return None
    return str(run.folder.parent if outer else run.folder)
