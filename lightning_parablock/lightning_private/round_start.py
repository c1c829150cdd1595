"""Where the loops of a fit are, and a fit that begins there instead of at its first batch."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import RestartStage

from lightning_parablock.lightning_private.instances import replace_method

_COUNTERS = ("total", "current")


def progress_before_batch(trainer: Trainer) -> dict[str, Any]:
    """The progress of a fit's loops, asked when a batch is about to be trained on: as if it had not been fetched yet.

    Lightning has no name for this place: a checkpoint is always of a place after a batch. Without this, a site that
    joins would count one batch more than the others.
    """
    loop: Any = trainer.fit_loop
    state = copy.deepcopy(loop.state_dict())
    state["state_dict"] = {}  # the places in this site's own loaders
    batches = state["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for counter in _COUNTERS:
        batches[counter]["ready"] = batches[counter]["completed"]
    return state


def start_before_batch(trainer: Trainer, progress: dict[str, Any]) -> tuple[int, int]:
    """Let a fit that has not begun its first epoch continue where :func:`progress_before_batch` was asked.

    Lightning's own restart from a checkpoint assumes that a batch has ended, and would validate or step schedulers
    before the first batch. So its loops are not told that they restart. Without this, a site that joins would train and
    validate at other batches than the others.

    Args:
        trainer: The trainer, in ``on_train_start``.
        progress: Of another site.

    Returns:
        Epoch and batch, from 0, with which the fit begins.
    """
    loop: Any = trainer.fit_loop
    loop.load_state_dict(progress)
    for each in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        each._restarting = each._loaded_from_state_dict = each._resuming_from_checkpoint = False
    epoch, batch = loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.completed
    if batch == 0:  # the epoch begins here, with all of its hooks
        for counter in (loop.epoch_progress.total, loop.epoch_progress.current):
            counter.ready = counter.started = counter.processed
        return epoch, batch
    loop._restart_stage = RestartStage.RESTARTED_MID_EPOCH

    def keep_progress() -> None:
        del loop.epoch_loop.reset  # from the next epoch on, each begins at its first batch

    replace_method(loop.epoch_loop, "reset", keep_progress)
    return epoch, batch


def set_up_validation(trainer: Trainer) -> None:
    """Make the validation loaders now, if there are any and Lightning would make them later.

    They are made in the first epoch that validates, where the sites of a run compare them. Without this, a site that
    joins after that epoch would compare its own when no other does.
    """
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    if trainer.enable_validation and loop._combined_loader is None:
        trainer.validating = True
        loop.setup_data()
        trainer.training = True
