"""What cannot work where clients skip steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.strategy.skipped_steps import SkippedSteps, may_miss_epochs, refuse_meeting_logs, refuse_scaler


def trainer_with(*, on_epoch: bool, is_tensor: bool = True, synced: bool = False) -> Any:
    meta = SimpleNamespace(name="acc", on_epoch=on_epoch, sync=SimpleNamespace(should=synced))
    return SimpleNamespace(_results={"training_step.acc": SimpleNamespace(meta=meta, is_tensor=is_tensor)})


@pytest.mark.parametrize("logged", [{"synced": True}, {"is_tensor": False}], ids=["sync_dist", "torchmetrics"])
def test_means_over_an_epoch_in_which_a_rank_may_have_no_client_are_refused(logged: dict[str, bool]) -> None:
    with pytest.raises(ConfigurationError, match=r"training_step logs 'acc' over the epoch.*with cohort or avail"):
        refuse_meeting_logs(trainer_with(on_epoch=True, **logged), SkippedSteps(sits_out=True), misses_epochs=True)
    refuse_meeting_logs(trainer_with(on_epoch=True, **logged), SkippedSteps(out_of_data=True), misses_epochs=False)
    refuse_meeting_logs(trainer_with(on_epoch=False, **logged), SkippedSteps(sits_out=True), misses_epochs=True)


@pytest.mark.parametrize(
    ("skipped", "clients_by_rank", "epoch_steps", "misses"),
    [
        (SkippedSteps(), ((0,), (1,)), 1, False),
        (SkippedSteps(out_of_data=True), ((0,), (1,)), 1, False),  # it had some of the epoch's
        (SkippedSteps(), ((0,), (1,)), 0, False),  # a stream of unknown length
        (SkippedSteps(own_steps=True), ((0,), (1,)), 0, True),
        (SkippedSteps(own_steps=True), ((0,), (1,)), float("inf"), False),
        (SkippedSteps(own_steps=True), ((0,), (1,)), 3.5, False),  # its last step has half of the batches
        (SkippedSteps(sits_out=True), ((0,), (1,)), 1000, True),
        (SkippedSteps(own_steps=True), ((0,), (1,)), 3, True),
        (SkippedSteps(own_steps=True), ((0,), (1,)), 4, False),  # a round's first step is in it
        (SkippedSteps(idle_turns=True), ((0, 1), (2,)), 4, True),
        (SkippedSteps(idle_turns=True), ((0, 1), (2,)), 5, False),
        (SkippedSteps(idle_turns=True, own_steps=True), ((0, 1, 2), (2,)), 11, True),
        (SkippedSteps(idle_turns=True, own_steps=True), ((0, 1, 2), (2,)), 12, False),
    ],
)
def test_an_epoch_passes_without_a_rank_where_it_is_no_longer_than_its_pause(
    skipped: SkippedSteps, clients_by_rank: Any, epoch_steps: float, misses: bool
) -> None:
    assert may_miss_epochs(skipped, 4, clients_by_rank, epoch_steps) == misses


def test_what_a_client_logs_for_itself_is_fine() -> None:
    refuse_meeting_logs(trainer_with(on_epoch=True), SkippedSteps(sits_out=True), misses_epochs=True)
    nothing: Any = SimpleNamespace(_results=None)
    refuse_meeting_logs(nothing, SkippedSteps(sits_out=True), misses_epochs=True)


def test_a_gradient_scaler_needs_gradients_in_every_step() -> None:
    with pytest.raises(ConfigurationError, match=r"own_local_steps or own_local_s\); use 'bf16-mixed'"):
        refuse_scaler(65536.0, SkippedSteps(own_steps=True))
    refuse_scaler(1.0, SkippedSteps(own_steps=True))
    refuse_scaler(65536.0, SkippedSteps())


def test_all_reasons_are_named() -> None:
    every = SkippedSteps(out_of_data=True, own_steps=True, sits_out=True, idle_turns=True)
    assert len(every.why.split(", ")) == 4
    assert every.in_steps and not SkippedSteps().in_steps
