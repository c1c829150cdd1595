"""Histories that random ones seldom meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typing_extensions import override

from tests.elastic.histories import History
from tests.elastic.sites import Attempt, Run, Site

BASE: dict[str, Any] = {
    "K": 4,
    "n": 4,
    "blocks": 2,
    "delay": 8,
    "warmup": 0,
    "rounds": 10,
    "order": "sequential",
    "cohort": None,
    "weighting": "uniform",
    "in_flight_value": "local",
    "min_clients": 1,
    "compression": "none",
    "server": "nesterov",
    "dtype": "float32",
    "begin": -1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Planned(History):
    """A history without random faults."""

    @override
    def plan_faults(self) -> None:
        """What goes wrong is up to the test."""

    def site(self, name: str) -> Site:
        """The process of a site that is alive."""
        return next(s for s in reversed(self.run.sites) if s.name == name and s.is_alive)

    def when(self, is_so: Callable[[], bool], act: Callable[[], object]) -> None:
        """Act as soon as something is so."""

        def look() -> None:
            if is_so():
                act()
            else:
                self.world.after(0.25, look)

        self.world.after(0.25, look)


@pytest.mark.parametrize("topology", ["star", "sharded"])
@pytest.mark.parametrize("seed", range(4))
def test_open_reaches_one_member_alone_then_another_is_lost(
    seed: int, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = Planned(seed, **BASE, topology=topology)
    cut_off: list[Attempt] = []
    deliver = Run._open

    def open_at_one(self: Run, attempt: Attempt, site: Site) -> None:
        assert attempt.decision is not None
        if not cut_off and attempt.decision.record.gone.keys() == {3} and site.name == "b":
            deliver(self, attempt, site)
            if site.membership.generation == attempt.generation:
                cut_off.append(attempt)
                self.kill(history.site("a"), restarts=True)  # the coordinator, before the others hear from it
        elif attempt not in cut_off and attempt.decision.record.gone.keys() != {3}:
            deliver(self, attempt, site)

    monkeypatch.setattr(Run, "_open", open_at_one)
    history.when(
        lambda: history.site("d").transport.started >= 3, lambda: history.run.kill(history.site("d"), restarts=False)
    )
    history.check()
    records = history.run.log.records
    assert cut_off, "b alone has opened it"
    i = next(i for i, record in enumerate(records) if 3 in record.gone)
    assert records[i].members == (0, 1, 2), "c has acknowledged what b alone has opened"
    assert {1, 2} <= set(records[i + 1].members) - set(records[i + 1].joiners)


@pytest.mark.parametrize("topology", ["star", "sharded"])
@pytest.mark.parametrize("seed", range(4))
def test_n_does_not_fall_when_the_only_member_that_was_ahead_is_lost(seed: int, topology: str) -> None:
    history = Planned(seed, **{**BASE, "n": 2}, topology=topology)
    run = history.run
    slow, fast = run.sites
    slow.pace, fast.pace = 6.0, 0.3

    def is_ahead() -> bool:
        return fast.transport.started >= slow.transport.started + 2

    def admit() -> None:
        history.join("c")
        history.when(lambda: 2 in fast.membership.log.newest.members, lambda: run.kill(fast, restarts=False))

    history.when(lambda: slow.transport.started >= 2 and is_ahead(), admit)
    history.check()
    first = next(i for i, record in enumerate(run.log.records) if 2 in record.joiners)
    admitted, after = run.log.records[first : first + 2]
    assert after.members == (0, 2)
    assert after.first_round >= admitted.first_round
    assert [key for key in slow.landed if key[0] < admitted.first_round], "rounds below n continued with the slow one"


@pytest.mark.parametrize("topology", ["star", "sharded"])
@pytest.mark.parametrize("delay", [2, 4, 8])
@pytest.mark.parametrize("first_round", [1, 2, 3, 4, 5])
def test_a_site_joins_in_the_warm_up_and_around_its_end(first_round: int, delay: int, topology: str) -> None:
    """In rounds without delay, in the first one with it, and where that one is the oldest in flight."""
    codec = {"compression": "int8", "server": "nesterov"}
    history = Planned(first_round, **{**BASE, **codec, "n": 3, "delay": delay, "warmup": 3}, topology=topology)
    run = history.run
    history.when(
        lambda: run.sites[0].transport.started >= max(first_round - 2, 0),
        lambda: (run.kill(history.site("b"), restarts=True), history.join("d")),
    )
    history.check()
    assert run.seen["histories compared"] == 1
    joined = {record.first_round for record in run.log.records[1:] if record.joiners}
    assert min(joined) in (first_round - 1, first_round), joined


@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_what_is_sent_again_after_a_loss_is_the_same_with_the_sparse_codec(topology: str) -> None:
    history = Planned(0, **{**BASE, "compression": "sparse"}, topology=topology)
    history.when(
        lambda: history.site("d").transport.started >= 3, lambda: history.run.kill(history.site("d"), restarts=False)
    )
    history.check()
    assert any(3 in record.gone for record in history.run.log.records)
