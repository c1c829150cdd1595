"""A site: ``python -m tests.elastic.processes.worker FOLDER SITE``; the run's options are in ``FOLDER/run.json``.

With ``federation`` in the options sums are secure: keys are in ``FOLDER/keys/SITE``, and each process draws batches of
its own and says in ``SITE.rows`` which rows each of its steps has had.

The round with which the run ends comes in ``FOLDER/end``, when the test has seen enough. At its end the site writes
``SITE.pt`` (its weights, one vector per block) and ``SITE.json`` (the membership log, and what its collectives gave).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.settings import SecureAggregation
from tests.elastic.processes.phases import Phases
from tests.elastic.processes.toy import BLOCKS, LR, K, batch_size, data_of, loss_of, network


class Toy(LightningModule):
    """See toy.py."""

    def __init__(self, width: int, pause_s: float, rows: Path | None = None) -> None:
        super().__init__()
        self.net, self._pause_s, self._rows = network(width), pause_s, rows
        self.validated: list[tuple[int, str]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self._pause_s)
        if self._rows is not None:
            with self._rows.open("a") as file:
                file.write(json.dumps([self.trainer.global_step, batch.pop().tolist()]) + "\n")
        return loss_of(self.net, *batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("validated", loss_of(self.net, *batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        value = self.trainer.callback_metrics.get("validated")
        if value is not None and not self.trainer.sanity_checking:
            self.validated.append((self.trainer.global_step, float(value).hex()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)


class Told(Callback):
    """Says where the run is, saves, and ends it after the round that it is given."""

    def __init__(self, phases: Phases, folder: Path, site: str) -> None:
        self._phases, self._folder, self._site = phases, folder, site

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % K == 0:
            self._phases.note(f"round {trainer.global_step // K}")
        self._phases.pass_("computing")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % (3 * K) == 0:
            trainer.save_checkpoint(self._folder / f"{self._site}.ckpt")
        end = self._folder / "end"
        if end.exists() and trainer.global_step >= K * int(end.read_text()):
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._phases.pass_("validating")


def main() -> None:
    """Train as one site."""
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    folder, site = Path(sys.argv[1]), sys.argv[2]
    options = json.loads((folder / "run.json").read_text())
    phases = Phases(folder, site)
    phases.install()
    phases.note("started")
    chosen = {"weighting": "samples", **options["strategy"]}
    is_secure = "federation" in chosen
    if is_secure:
        # This machine has no WireGuard interface: who is who comes from the roster, links do not.
        mock.patch("lightning_parablock.strategy.ranks.private_links", return_value=None).start()
        chosen |= {"keys": str(folder / "keys" / site), "aggregation": SecureAggregation(chosen["aggregation"])}
    strategy = ParaBlockStrategy(
        site=site,
        local_steps=K,
        block_order="sequential",
        blocks=[rf"net\.{name}" for name in BLOCKS],
        **chosen,
    )
    module = Toy(options["width"], options["pause_s"], folder / f"{site}.rows" if is_secure else None)
    x, y = data_of(site)
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        max_epochs=100_000,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder / site,
        callbacks=[Told(phases, folder, site)],
    )
    size = batch_size(site)
    validated = DataLoader(TensorDataset(x[: 2 * size], y[: 2 * size]), batch_size=size)
    train = TensorDataset(x, y, torch.arange(len(x))) if is_secure else TensorDataset(x, y)
    trainer.fit(module, DataLoader(train, batch_size=size, shuffle=is_secure), validated)
    weights = [torch.cat([p.detach().reshape(-1) for p in module.net.get_submodule(b).parameters()]) for b in BLOCKS]
    torch.save(weights, folder / f"{site}.pt")
    facts = {
        "log": strategy.membership_log.to_json(),
        "hash": strategy.weights_sha256,
        "validated": module.validated,
        "steps": trainer.global_step,
    }
    (folder / f"{site}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
