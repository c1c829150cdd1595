"""An error that names the client whose data set is empty, where PyTorch names neither."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer
from torch.utils.data import RandomSampler

from lightning_parablock.errors import DataError
from lightning_parablock.lightning_private.fit import wrap_data_setup
from lightning_parablock.loading.lengths import length_of


def name_empty_data(trainer: Trainer, who: Callable[[], str]) -> None:
    """Name the client and the data where a loader shuffles a data set without rows, which PyTorch's sampler refuses.

    Args:
        trainer: The trainer whose loops request loaders.
        who: Returns this rank's client in words.
    """

    def named(set_up: Callable[[], None]) -> None:
        try:
            set_up()
        except ValueError as error:
            if not _comes_from_no_rows(error):
                raise
            stage = trainer.state.stage
            raise DataError(
                f"the {stage.value if stage is not None else ''} data of {who()} have 0 rows, in a loader that "
                "shuffles; every client needs at least one row"
            ) from error

    wrap_data_setup(trainer, named)


def _comes_from_no_rows(error: ValueError) -> bool:
    """Whether the error was raised by a RandomSampler over an empty data set."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    sampler = None if last is None else last.tb_frame.f_locals.get("self")
    return isinstance(sampler, RandomSampler) and length_of(sampler.data_source) == 0
