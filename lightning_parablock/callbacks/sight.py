"""Metrics of each client: loss of the committed model on its data, drift and participation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks.gather import gather_objects, round_records
from lightning_parablock.callbacks.sight_figures import (
    ClientFigures,
    Sums,
    client_metrics,
    figures_of,
    label_metrics,
)
from lightning_parablock.callbacks.sight_losses import Losses, Sum
from lightning_parablock.checks import nearest
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.names import ClientNames

MAX_CLIENTS = 64
"""With more clients, only means, worst and spread are logged: figures of single clients would bury all others."""

Shared = Literal["clients", "aggregates", "nothing"]
"""What a client shares: its own figures, only sums over all clients, or nothing."""


def check_shared(shared: str) -> None:
    """Raise a ConfigurationError if the value is not one of :data:`Shared`."""
    if shared not in get_args(Shared):
        raise ConfigurationError(f"shared={shared!r} is not known; {nearest(shared, get_args(Shared))}")


class ClientSight(Callback):
    """Logs validation loss by client and label, worst client and spread, drift and participation.

    After each validation and at the end of training it logs, to every logger and to ``trainer.callback_metrics``:

    - ``parablock/val_loss_client_{i}``: mean validation loss of the committed model on client i's own rows;
      ``_mean``, ``_worst`` (highest), ``_spread`` (highest minus lowest) and ``_std`` in place of ``_client_{i}``:
      over the clients, with equal weights.
    - ``parablock/val_loss_label_{name}``: mean over the rows with that label.
    - ``parablock/drift_client_{i}``, ``_mean``, ``_max``: ``RoundRecord.drift``, the mean over the rounds merged
      since the last figures.
    - ``parablock/participation_client_{i}``, ``_mean``, ``_min``: share of the rounds merged so far in which the client
      trained, 0 to 1.
    - ``parablock/samples_client_{i}``, ``_total``: samples trained on so far.

    Where sites have names, ``_client_{i}`` becomes ``_site_{name}``, unless a site hosts several clients.

    The losses are those that ``validation_step`` returns: a scalar, a dict with a scalar ``loss``, or a dict with
    ``loss_sums`` and ``loss_counts`` of shape (samples,); otherwise the mean that the module logs under ``monitor``.
    With more than 64 clients, only figures over all clients are logged. A client's own rows are those of the last
    validation loader (if a rank hosts several clients, ``row_clients`` of its data set assigns the rows to them),
    unless all clients have the same rows there and the strategy has sharded them. Labels need ``loss_sums``, and a
    first validation loader that does not shuffle, over a data set with ``row_labels`` (an index for each sample) and
    ``label_names``. All clients need the callback with the same options.

    Args:
        shared: What leaves a client: "clients", its figures, which all clients see; "aggregates", only sums and maxima
            over the clients, and no figure of a single client is logged; "nothing": each client logs only its own
            figures, and also keeps them in a file on its own disk.
        monitor: Name of the logged validation loss.
        folder: Folder of the file written with "nothing", ``sight-client{i}.jsonl`` or ``sight-site_{name}.jsonl``;
            None for the trainer's log directory.

    Raises:
        ConfigurationError: ``shared`` is not one of these values.
    """

    def __init__(self, shared: Shared = "clients", monitor: str = "val_loss", folder: str | None = None) -> None:
        check_shared(shared)
        self.shared: Shared = shared
        self.monitor, self._folder = monitor, folder
        self._losses: Losses | None = None
        self._told_rounds = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told_rounds = 0

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = None if trainer.sanity_checking else Losses(trainer, self.monitor)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._losses is not None:
            self._losses.add(outputs, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses, self._losses = self._losses, None
        if losses is not None:
            self._tell(trainer, losses.own_of(_hosted(trainer)), losses.of_labels())

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the drain; Lightning skips this hook after an exception, so no rank waits in a collective then.
        self._tell(trainer, dict.fromkeys(_hosted(trainer)), {})

    def _tell(self, trainer: Trainer, losses: dict[int, float | None], labels: dict[str, Sum]) -> None:
        records = round_records(trainer.strategy)
        own = figures_of(records, losses, told_rounds=self._told_rounds)
        self._told_rounds = max((r.round + 1 for r in records), default=0)
        metrics = {"clients": _among_clients, "aggregates": _in_sums, "nothing": _alone}[self.shared](
            trainer.strategy, own, labels
        )
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            if metrics:
                logger.log_metrics(metrics, step=trainer.global_step)
        if self.shared == "nothing":
            self._keep(trainer, ClientNames.of(trainer.strategy).key(own[0].client), metrics)

    def _keep(self, trainer: Trainer, key: str, metrics: dict[str, float]) -> None:
        """Most loggers write only on the first rank: the figures of all other clients would be lost."""
        folder = Path(self._folder or trainer.log_dir or trainer.default_root_dir)  # log_dir is a broadcast
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"sight-{key.replace('client_', 'client', 1)}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": trainer.global_step, **metrics}) + "\n")


def _hosted(trainer: Trainer) -> Sequence[int]:
    return getattr(trainer.strategy, "hosted_clients", (trainer.global_rank,))


def _among_clients(strategy: Any, own: Sequence[ClientFigures], labels: dict[str, Sum]) -> dict[str, float]:
    """Figures shared by every client with all clients."""
    told = gather_objects(strategy, (list(own), labels))
    everybody = sorted((one for clients, _ in told for one in clients), key=lambda one: one.client)
    of_labels: dict[str, Sum] = {}
    for name, (total, count) in (item for _, found in told for item in found.items()):
        before = of_labels.get(name, (0.0, 0.0))
        of_labels[name] = before[0] + total, before[1] + count
    passed = max(one.passed_rounds for one in everybody)
    shown = everybody if len(everybody) <= MAX_CLIENTS else []
    named = client_metrics(shown, passed, ClientNames.of(strategy))
    return {**named, **Sums.of(everybody).metrics(), **label_metrics(of_labels)}


def _in_sums(strategy: Any, own: Sequence[ClientFigures], labels: dict[str, Sum]) -> dict[str, float]:
    """Sums and maxima from two reductions and, where all clients have the same labels, a third."""
    sums, names = Sums.of(own), sorted(labels)
    same = float(int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:6], "big"))
    *peaks, high, low = _reduced(strategy, [*sums.peaks, same, -same], "max")
    found = Sums(tuple(_reduced(strategy, sums.added, "sum")), tuple(peaks)).metrics()
    if high != -low or not names:  # the same decision on all clients, or they would not meet in the next reduction
        return found
    flat = _reduced(strategy, [value for name in names for value in labels[name]], "sum")
    return {**found, **label_metrics(dict(zip(names, zip(flat[::2], flat[1::2], strict=True), strict=True)))}


def _alone(strategy: Any, own: Sequence[ClientFigures], labels: dict[str, Sum]) -> dict[str, float]:
    """A client's own figures, shared with no other client."""
    passed = max(one.passed_rounds for one in own)
    return {**client_metrics(own, passed, ClientNames.of(strategy)), **label_metrics(labels)}


def _reduced(strategy: Any, values: Sequence[float], how: Literal["sum", "max"]) -> list[float]:
    device = strategy.root_device if strategy.root_device.type == "cuda" else "cpu"  # not all devices have float64
    return strategy.reduce(torch.tensor(values, dtype=torch.float64, device=device), reduce_op=how).tolist()
