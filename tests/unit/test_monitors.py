"""What is replaced on the trainer's instances, without any other client."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.errors import ProtocolError
from lightning_parablock.lightning_private.monitors import share_monitored_values, unshare_monitored_values

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("own", "first", "differ"),
    [
        (0.5, 0.5, False),
        (0.5, 0.25, True),
        (NAN, NAN, False),
        (NAN, 0.5, True),
        (0.5, NAN, True),
        (INF, INF, False),
        (INF, -INF, True),
        (3, 4, True),
        (torch.tensor(0.1), torch.tensor(0.1), False),
    ],
)
def test_a_monitored_value_of_each_clients_own_is_reported(
    own: Any, first: Any, differ: bool, caplog: pytest.LogCaptureFixture
) -> None:
    callback = ModelCheckpoint(monitor="val_loss")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False)
    trainer._logger_connector._callback_metrics["val_loss"] = torch.as_tensor(own)
    share_monitored_values(trainer, lambda values: {**values, "val_loss": torch.as_tensor(first)})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            callback._monitor_candidates(trainer)
    assert caplog.text.count("has a value of its own") == differ
    unshare_monitored_values(trainer)
    assert "_monitor_candidates" not in vars(callback)


def test_a_value_of_the_first_client_that_is_no_number_does_not_become_a_part_of_a_path() -> None:
    callback = ModelCheckpoint(filename="{own}", monitor="own")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False)
    trainer._logger_connector._callback_metrics["own"] = torch.tensor(0.5)
    share_monitored_values(trainer, lambda values: {**values, "own": "/../../../x"})
    with pytest.raises(ProtocolError, match=r"the first client sends '/\.\./\.\./\.\./x' as a metric"):
        callback._monitor_candidates(trainer)
