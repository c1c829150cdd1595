"""Collectives in steps that not all ranks make."""

from __future__ import annotations

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from lightning_parablock.errors import ConfigurationError, PeerLostError
from lightning_parablock.strategy.skipped_steps import SkippedSteps
from lightning_parablock.strategy.sync_guard import SyncGuard, located


def test_a_collective_is_refused_only_inside_a_step_that_others_may_not_make() -> None:
    guard = SyncGuard()
    guard.check("reduce")
    with guard.training_step(SkippedSteps(own_steps=True)):
        with pytest.raises(ConfigurationError, match=r"a reduce of all clients in training_step.*own_local_steps"):
            guard.check("reduce")
        with guard.evaluation_step(is_uneven=True), pytest.raises(ConfigurationError, match="validation or test"):
            guard.check("barrier")
        with pytest.raises(ConfigurationError, match="training_step"):
            guard.check("barrier")
    guard.check("reduce")


def test_where_sites_come_and_go_the_reason_is_theirs() -> None:
    guard = SyncGuard()
    with (
        guard.training_step(SkippedSteps(new_sites=True)),
        pytest.raises(ConfigurationError, match=r"in training_step, .* \(sites come and go, and a new one may have"),
    ):
        guard.check("reduce")
    with (
        guard.evaluation_step(is_uneven=True, new_sites=True),
        pytest.raises(ConfigurationError, match="in a step of validation or test, where sites come and go"),
    ):
        guard.check("reduce")


def test_steps_that_all_make_refuse_nothing() -> None:
    guard = SyncGuard()
    with guard.training_step(SkippedSteps()), guard.evaluation_step(is_uneven=False):
        guard.check("reduce")


def test_an_error_in_a_step_ends_its_refusals() -> None:
    guard = SyncGuard()
    with pytest.raises(ArithmeticError), guard.evaluation_step(is_uneven=True):
        raise ArithmeticError
    guard.check("reduce")


def test_an_error_says_once_where_it_was_noticed() -> None:
    lost = PeerLostError("client 1 is lost")
    assert str(located(lost, TrainerFn.TESTING, None)) == "in test: client 1 is lost"
    before = located(lost, TrainerFn.FITTING, None)
    assert str(before) == "before the first round: client 1 is lost"
    assert isinstance(before, PeerLostError)
    in_round = lost.at(3, "head")
    assert str(in_round).startswith("round 3, block 'head': client 1 is lost; the run cannot continue")
    assert in_round.at(4, "tail") is in_round
    assert located(in_round, TrainerFn.FITTING, None) is in_round
