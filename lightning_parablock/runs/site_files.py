"""Files that Lightning writes only on the first rank, written to its own run folder by every site with a name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from lightning_parablock.runs.run import Run, first_rank


class SiteCSVLogger(CSVLogger):
    """A CSVLogger that writes on every rank: each site has a ``metrics.csv`` with its own figures."""

    @property
    @override
    def experiment(self) -> Any:
        with first_rank():
            return super().experiment

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        with first_rank():
            super().log_hyperparams(*args, **kwargs)

    @override
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        with first_rank():
            super().log_metrics(*args, **kwargs)

    @override
    def save(self) -> None:
        with first_rank():
            super().save()

    @override
    def finalize(self, status: str) -> None:
        with first_rank():
            super().finalize(status)


class SaveConfig(SaveConfigCallback):
    """Saves ``config.yaml`` on the first rank, and on every site with a name.

    Args:
        *args: The parser and the configuration.
        run: The run, with its folder and its site.
        **kwargs: Options of Lightning's callback.
    """

    def __init__(self, *args: Any, run: Run, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = run

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        is_saved = self.already_saved
        super().setup(trainer, pl_module, stage)
        folder = self._run.folder
        if is_saved or trainer.is_global_zero or self._run.site is None or folder is None:
            return
        path = str(folder / self.config_filename)
        self.parser.save(self.config, path, skip_none=False, overwrite=self.overwrite, multifile=self.multifile)
