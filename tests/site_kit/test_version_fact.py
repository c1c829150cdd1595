"""Sites of a run compare the versions of their federation: an older one may have a site that a newer one revokes."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.desk.message import Identity
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.door import Door
from lightning_parablock.errors import ConfigurationError, RefusedError
from lightning_parablock.launching.agreement import refuse_differences
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.membership import Member
from lightning_parablock.site_kit.version_fact import version_fact
from lightning_parablock.strategy import elastic_ranks
from lightning_parablock.strategy.elastic_ranks import ElasticRanks
from tests.elastic.seats import THREE, LoneSeat
from tests.site_kit.sites import identities, unsigned

DIFFERS = "the version of the federation differs between clients"
ASKED = r"; copy the newest federation\.yaml to every site$"


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Member]:
    """Site a has version 2, from which c was removed; site b has version 1."""
    sites = identities(tmp_path)
    newer = unsigned({name: sites[name] for name in "ab"}, 2)
    return {"a": Member(newer, sites["a"]), "b": Member(unsigned(sites, 1), sites["b"])}


def test_sites_with_other_versions_do_not_meet(members: dict[str, Member]) -> None:
    facts = [version_fact(members[name]) for name in "ab"]
    name = members["a"].roster.federation
    who = rf"site a has version 2 of federation {name} \(\w+\); site b has version 1 of federation {name} \(\w+\)"
    with pytest.raises(ConfigurationError, match=f"{DIFFERS}: {who}{ASKED}"):
        refuse_differences(facts, ["site a", "site b"])
    refuse_differences(facts[:1] * 2, ["site a", "site b"])
    assert version_fact(None) == {}


def test_a_guest_with_another_version_is_not_let_in(members: dict[str, Member]) -> None:
    seat = LoneSeat("b", THREE)
    seat.facts = version_fact(members["a"])
    door = Door(seat)
    door.open(b"agreed")
    said: dict[str, Any] = {"site": "d", "facts": version_fact(members["b"])}
    call = Call(said, memoryview(b""), Identity("", "d"), 1.0, 0.0, threading.Event())
    with pytest.raises(RefusedError, match=rf"version 1 of .* here and version 2 of .* in the run{ASKED}"):
        door.answer_enter(call)


def test_sites_that_come_and_go_compare_versions_also_without_secure_sums(
    members: dict[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []
    run = SimpleNamespace(client=0, entry=SimpleNamespace(is_founder=True))
    monkeypatch.setattr(elastic_ranks, "open_site", lambda *args: None)
    monkeypatch.setattr(elastic_ranks.ElasticRun, "enter", lambda *args: entered.append(args[2]) or run)
    ranks: Any = SimpleNamespace(
        settings=Settings(lighthouse="here:1", min_clients=1),
        _member=members["a"],
        _site="a",
        _site_folder=None,
        _links=None,
        _held_checkpoint=lambda: None,
    )
    ElasticRanks._enter(ranks, SimpleNamespace(follow=lambda *args: None))  # type: ignore[arg-type]
    assert version_fact(members["a"]).items() <= entered[0].items()
