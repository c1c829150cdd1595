"""Two cases that random histories meet rarely."""

from __future__ import annotations

import pytest

from lightning_parablock.regroup.log import MembershipLog
from tests.regroup import history
from tests.regroup.site import Site
from tests.regroup.spoilt import NFalls
from tests.regroup.toy import Task
from tests.regroup.world import World


def final_log(world: World) -> MembershipLog:
    logs = [site.membership.log for site in world.everyone if site.has_finished]
    return max(logs, key=lambda log: log.generation)


@pytest.mark.parametrize("topology", ["star", "sharded"])
@pytest.mark.parametrize("delay_steps", [0, 3, 4, 12])
@pytest.mark.parametrize(
    ("reached", "dies", "is_real"),
    [("site b", "site a", True), ("site a", "site a", False), ("site b", "site b", False), ("site c", "site b", True)],
    ids=["coordinator dies", "coordinator alone opens and dies", "the one that opens dies", "a third one dies"],
)
def test_open_reaches_one_member_only_and_then_another_is_lost(
    reached: str, dies: str, is_real: bool, delay_steps: int, topology: str
) -> None:
    """Site d is lost; the regroup's "open" reaches one of a, b and c before one of them is lost, too."""
    task = Task(n_blocks=3, local_steps=4, delay_steps=delay_steps, topology=topology, server="nesterov", is_lossy=True)
    world = World(task, seed=delay_steps)
    for letter in "abcd":
        world.start(f"site {letter}")
    loses_open = True

    def passes(source: Site, target: Site, kind: str) -> bool:
        nonlocal loses_open
        if kind != "open" or source.membership.sealed < 1 or not loses_open:
            return True
        if target.name == "site c":  # the last one to which it is sent
            loses_open = False
            world.at(3.0, world.kill, dies)
        return target.name == reached

    world.on_message = passes
    world.at(20.0, world.kill, "site d")
    assert world.run() == "done"
    history.check(world)
    log = final_log(world)
    assert not loses_open
    assert (1 in [record.generation for record in log.records]) == is_real
    assert (world.stats["adopted generations"] > 0) == is_real
    left = {"site a", "site b", "site c"} - {dies}
    assert left in [{log.newest.sites[client] for client in record.members} for record in log.records[1:]]


def run_in_which_n_would_fall(site_class: type[Site] = Site) -> World:
    """Site b is ahead by two rounds when a new site is admitted, and then dies before others have started its round."""
    task = Task(n_blocks=2, local_steps=4, delay_steps=8, n_rounds=12, topology="sharded", server="nesterov")
    world = World(task, 1, site_class)
    world.paces = {"site a": 4.0, "site b": 0.2, "site c": 4.0, "site new": 1.0}
    for letter in "abc":
        world.start(f"site {letter}")
    world.aims = {"ahead"}
    world.at(20.0, world.join, "site new")
    world.run()
    return world


def test_n_does_not_fall() -> None:
    world = run_in_which_n_would_fall()
    history.check(world)
    assert world.stats["decisions in which n would fall"] == 1
    admits, loses = final_log(world).records[1:3]
    assert (admits.joiners, loses.gone) == ((3,), {1: "lost"})
    assert admits.first_round == loses.first_round
    started = [site.rounds[0] for site in world.everyone if site.name == "site new"]
    assert started == [admits.first_round]


def test_a_run_in_which_n_falls_is_another_one() -> None:
    with pytest.raises(history.Differs):
        history.check(run_in_which_n_would_fall(NFalls))
