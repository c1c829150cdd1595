"""What a site that enters says while it waits: for the lighthouse, for its list, or for other sites."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.seat import SiteOptions
from lightning_parablock.elastic.site import Site
from lightning_parablock.errors import ArbiterError
from tests.support.local_arbiter import LocalLighthouse

START = "start it there with `lightning-parablock lighthouse --port 29510`, and check `nc -vz hub.example.org 29510`"


@pytest.fixture
def site() -> Iterator[Site]:
    """One that is new, whose watcher the test speaks for."""
    options = SiteOptions("a", "hub.example.org:29510", 2, 60.0, 1, 5.0, "star", False)
    made = Site(options, LocalLighthouse().arbiter(), "127.0.0.1")
    made._watcher.close = lambda limit_s: None  # type: ignore[method-assign]  # it has not begun
    yield made
    made.close()


def test_a_lighthouse_that_has_not_answered_yet_is_what_it_waits_for(site: Site) -> None:
    expected = f"the lighthouse at hub.example.org:29510, which has not answered yet: {START}"
    assert site._awaited() == expected
    site._watcher.away = ArbiterError("the lighthouse cannot be reached")
    assert site._awaited() == expected


def test_one_that_was_there_does_not_answer_any_more(site: Site) -> None:
    site.seat.note_list((site.seat.me(),))
    site._watcher.away = ArbiterError("the lighthouse cannot be reached")
    assert site._awaited() == f"the lighthouse at hub.example.org:29510, which does not answer any more: {START}"


def test_one_that_waits_for_another_process_need_not_be_started(site: Site) -> None:
    site._watcher.away = ArbiterError("the lighthouse at hub waits for a process", is_away=False)
    assert site._awaited() == "a list of the sites: the lighthouse at hub waits for a process"


def test_guests_of_another_run_are_not_among_the_sites_that_are_here(site: Site) -> None:
    site.seat.note_list((site.seat.me(), Candidate("d", "i", "d:1", run="lost", client=3)))
    assert site._awaited() == "other sites: 1 of min_clients=2 are here (a); start the others"


def test_where_all_are_here_the_one_that_coordinates_knows_more(site: Site) -> None:
    site.seat.note_list((site.seat.me(), *(Candidate(name, name, f"{name}:1") for name in "cb")))
    said = "the start of the run: 3 of min_clients=2 are here (a, b, c), and site a coordinates it: see its log"
    assert site._awaited() == said
    site.seat.problem = "site b does not answer"
    assert site._awaited() == f"{said}; site b does not answer"
