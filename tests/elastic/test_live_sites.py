"""Whole sites in one process: founding, losses, returns, new sites, leaving, and collectives across all of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic import attempt, roster, seat, watcher
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.view import Entry, HeldCheckpoint
from lightning_parablock.errors import PeerTimeoutError, UnreachableError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.settings import Settings
from tests.elastic.fake_site import together
from tests.elastic.live_sites import ToySite, until
from tests.support.local_arbiter import LocalLighthouse

_LIMIT_S = 60.0


def _started(
    names: str, lighthouse: LocalLighthouse, settings: Settings, rounds: int, **how: float
) -> dict[str, ToySite]:
    sites = {
        name: ToySite(name, lighthouse, settings, rounds, pause_s=how.get("pause_s", 0.02), min_clients=2)
        for name in names
    }
    for site in sites.values():
        site.start()
    return sites


_until = partial(until, limit_s=_LIMIT_S)


def _ended(sites: list[ToySite]) -> None:
    _until(lambda: not any(site.is_alive() for site in sites), sites)
    for site in sites:
        if site.error is not None:
            raise site.error
    first = sites[0]
    for site in sites[1:]:
        for mine, other in zip(first.weights, site.weights, strict=True):
            assert torch.equal(mine, other)
        assert site.gathered == first.gathered
        assert site.site.log == first.site.log or site.site.log.records == first.site.log.records
    for site in sites:
        noted = [line.record for line in site.site.journal.lines if line.record is not None]
        assert noted == list(site.site.log.records)


@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_founders_train_together(topology: str) -> None:
    lighthouse = LocalLighthouse(founders=3)
    sites = _started("abc", lighthouse, Settings(local_steps=2, topology=topology), 5)
    _ended(list(sites.values()))
    assert sites["a"].gathered == [{0: b"a", 1: b"b", 2: b"c"}]
    for site in sites.values():
        site.site.close()


@pytest.mark.parametrize("victim", ["a", "c"])
@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_a_lost_site_does_not_end_the_run(topology: str, victim: str) -> None:
    lighthouse = LocalLighthouse(founders=3)
    sites = _started("abc", lighthouse, Settings(local_steps=2, topology=topology), 30)
    _until(lambda: all(s.engine is not None and s.engine.round >= 3 for s in sites.values()), sites.values())
    sites[victim].kill()
    rest = [site for name, site in sites.items() if name != victim]
    _ended(rest)
    log = rest[0].site.log
    assert log.records[0].members == (0, 1, 2)
    assert set(log.newest.members) == {0, 1, 2} - {"abc".index(victim)}
    for site in rest:
        site.site.close()


@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_a_new_site_and_a_returning_one_join(topology: str) -> None:
    lighthouse = LocalLighthouse(founders=3)
    settings = Settings(local_steps=2, topology=topology)
    sites = _started("abc", lighthouse, settings, 120)
    _until(lambda: all(s.engine is not None and s.engine.round >= 3 for s in sites.values()), sites.values())
    sites["b"].kill()
    others = [sites["a"], sites["c"]]
    _until(lambda: len(sites["a"].site.log.newest.members) == 2, others)
    again = ToySite("b", lighthouse, settings, 120, pause_s=0.02, min_clients=2)
    new = ToySite("n", lighthouse, settings, 120, pause_s=0.02, min_clients=2)
    again.start()
    new.start()
    everybody = [*others, again, new]
    _ended(everybody)
    assert again.site.client == 1 and new.site.client == 3
    assert 0 < again.started_at < 120 and 0 < new.started_at < 120
    assert sites["a"].gathered == [{0: b"a", 1: b"b", 2: b"c", 3: b"n"}]
    for site in everybody:
        site.site.close()


def test_a_site_that_leaves_is_let_go() -> None:
    lighthouse = LocalLighthouse(founders=3)
    sites = _started("abc", lighthouse, Settings(local_steps=2), 40)
    _until(lambda: all(s.engine is not None and s.engine.round >= 3 for s in sites.values()), sites.values())
    assert sites["a"].leave()
    rest = [sites["b"], sites["c"]]
    sites["a"].site.close()
    _ended(rest)
    assert rest[0].site.log.newest.gone == {0: "left"}
    for site in rest:
        site.site.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Addresses of desks that no site reaches; who is left out is tried again after a moment."""
    addresses: set[str] = set()
    monkeypatch.setattr(roster, "_OUT_S", 0.3)
    monkeypatch.setattr(watcher, "_FOUND_AGAIN_S", 0.3)
    for module in (attempt, seat):
        call = module.call

        def reach(address: str, *said: Any, call: Any = call, **how: Any) -> Reply:
            if address in addresses:
                raise UnreachableError(f"{address}: nothing listens there", "refused")
            return call(address, *said, **how)

        monkeypatch.setattr(module, "call", reach)
    return addresses


def test_sites_found_the_run_once_the_ports_of_one_are_opened(
    closed: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    lighthouse, settings = LocalLighthouse(founders=3), Settings(local_steps=2)
    sites = [ToySite(name, lighthouse, settings, 5, pause_s=0.02, min_clients=3) for name in "abc"]
    closed.add(sites[1].site.seat.address)
    for site in sites:
        site.start()
    _until(lambda: caplog.text.count("site b is left out: not all of the other sites reach it") >= 2, sites)
    assert all(site.engine is None for site in sites)
    closed.clear()
    _ended(sites)
    assert [record.members for record in sites[0].site.log.records] == [(0, 1, 2)]
    for site in sites:
        site.site.close()


def test_a_new_site_joins_once_its_ports_are_opened(closed: set[str], caplog: pytest.LogCaptureFixture) -> None:
    lighthouse, settings = LocalLighthouse(founders=3), Settings(local_steps=2)
    sites = _started("abc", lighthouse, settings, 1000)
    _until(lambda: all(s.engine is not None and s.engine.round >= 1 for s in sites.values()), sites.values())
    new = ToySite("d", lighthouse, settings, 1000, pause_s=0.02, min_clients=2)
    closed.add(new.site.seat.address)
    new.start()
    everybody = [*sites.values(), new]
    _until(lambda: caplog.text.count("site d is left out: not all of the other sites reach it") >= 2, everybody)
    assert new.started_at < 0
    closed.clear()
    _until(lambda: new.started_at > 0, everybody)
    assert sites["a"].site.log.newest.members == (0, 1, 2, 3)
    for site in everybody:
        site.kill()


def test_the_sites_of_a_run_that_is_gone_found_another_one_beside_a_guest_that_waits_for_it() -> None:
    lighthouse, settings = LocalLighthouse(founders=2), Settings(local_steps=2)
    gone = _started("bc", lighthouse, settings, 1000)
    _until(lambda: all(s.engine is not None and s.engine.round >= 2 for s in gone.values()), gone.values())
    guest = ToySite("a", lighthouse, settings, 1000, pause_s=0.02, min_clients=2)
    assert not guest.site.enter({"settings": "the same"}).is_founder
    for site in gone.values():
        site.kill()
    _until(lambda: len(guest.site.seat.candidates) == 1, [guest])
    again = _started("bc", lighthouse, settings, 3)
    _ended(list(again.values()))
    assert again["b"].site.run_id not in ("", guest.site.run_id)
    assert again["b"].site.log.records[0].sites == {0: "b", 1: "c"}
    for site in (guest, *again.values()):
        site.site.close()


def test_founders_begin_where_the_newest_file_of_the_youngest_run_does() -> None:
    lighthouse = LocalLighthouse(founders=2)
    sites = [ToySite(name, lighthouse, Settings(), 1, pause_s=0.0, min_clients=2).site for name in "ab"]
    files = [HeldCheckpoint(9, MembershipLog(), ("x",)), HeldCheckpoint(5, MembershipLog(), ("x", "y"))]
    entries = together([partial(site.enter, {}, file) for site, file in zip(sites, files, strict=True)])
    assert [(one.is_founder, one.first_round) for one in entries] == [(True, 5)] * 2
    for site in sites:
        site.close()


def test_sites_wait_for_a_checkpoint_of_the_run_that_they_were_in_and_not_of_an_older_one(tmp_path: Path) -> None:
    old, young = HeldCheckpoint(9, MembershipLog(), ("old",)), HeldCheckpoint(5, MembershipLog(), ("old", "younger"))

    def enter(files: dict[str, HeldCheckpoint], rejoin_timeout_s: float) -> list[Entry]:
        lighthouse, sites = LocalLighthouse(founders=len(files)), list[ToySite]()
        for name in files:
            record = RunRecord(tmp_path / f"{name}.json")
            record.write("younger", ("old",))
            how = {"pause_s": 0.0, "min_clients": 2, "rejoin_timeout_s": rejoin_timeout_s}
            sites.append(ToySite(name, lighthouse, Settings(), 1, record=record, **how))  # type: ignore[arg-type]
        try:
            return together([partial(one.site.enter, {}, files[one.site_name]) for one in sites])
        finally:
            for one in sites:
                one.site.close()

    with pytest.raises(PeerTimeoutError, match=r"started run younger before .* its checkpoint is of run old, which is"):
        enter({"a": old, "c": old}, 3.0)
    entries = enter({"a": old, "b": young, "c": old}, 30.0)
    assert [(one.is_founder, one.first_round) for one in entries] == [(True, 5)] * 3


def test_a_site_that_has_started_a_run_does_not_found_it_again(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run.json")
    first = ToySite("a", LocalLighthouse(), Settings(local_steps=2), 2, pause_s=0.0, min_clients=1, record=record)
    first.start()
    _ended([first])
    assert not record.lineage(), "the run has ended as it should"
    record.write("some run")
    again = ToySite(
        "a",
        LocalLighthouse(),
        Settings(local_steps=2),
        2,
        pause_s=0.0,
        min_clients=1,
        record=record,
        rejoin_timeout_s=3.0,
    )
    again.start()
    again.join(_LIMIT_S)
    with pytest.raises(PeerTimeoutError, match=r"some run.*ckpt_path, or delete .*run\.json to begin a new run"):
        raise again.error or AssertionError("it has founded the run")
    for site in (first, again):
        site.site.close()
