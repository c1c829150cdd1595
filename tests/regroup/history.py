"""Random histories: settings and faults from one seed, the run, and its comparison with the oracle."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from lightning_parablock.regroup.log import MembershipLog
from tests.regroup.oracle import Oracle
from tests.regroup.site import Site
from tests.regroup.toy import Task
from tests.regroup.world import World


class Differs(Exception):
    """A run's results are not those of the loop that replays its log."""


def draw_task(rng: random.Random, seed: int) -> Task:
    steps = rng.choice((2, 4))
    return Task(
        seed=seed,
        n_blocks=rng.choice((1, 2, 3, 5)),
        local_steps=steps,
        delay_steps=rng.choice((0, steps // 2, steps, steps + steps // 2, 2 * steps, 3 * steps)),
        # From draws of its own: histories without a warm-up are what they were before there was one.
        warmup_rounds=random.Random(f"{seed} warm-up").choice((0, 0, 1, 3, 5)),
        n_rounds=rng.randint(5, 12),
        topology=rng.choice(("star", "sharded")),
        server=rng.choice(("sgd", "nesterov")),
        is_lossy=rng.random() < 0.5,
        order=rng.choice(("sequential", "random", "cyclic")),
        cohort=rng.choice((None, None, 1, 2, 3)),
        is_local=rng.random() < 0.8,
        min_clients=rng.choice((1, 1, 2)),
    )


def play(seed: int, site_class: type[Site] = Site) -> World:
    """A run with random settings and faults, to its end."""
    rng = random.Random(seed)
    world = World(draw_task(rng, seed), seed, site_class, is_ordered=rng.random() < 0.8)
    names = [f"site {letter}" for letter in "abcdef"[: rng.choice((2, 3, 3, 4, 4, 5, 6))]]
    has_checkpoints = rng.random() < 0.1
    for name in names:
        world.start(name, checkpoint_round=rng.choice((-1, 1, 2)) if has_checkpoints else -1)
    span = 6 + world.task.n_rounds * world.task.local_steps * 1.5
    for _ in range(rng.randint(1, 5)):
        draw_fault(rng, world, names, 4 + rng.random() * span)
    world.run()
    return world


def draw_fault(rng: random.Random, world: World, names: list[str], at: float) -> None:
    name, soon = rng.choice(names), at + rng.random() * 12
    match rng.choice(("kill", "two", "ahead", "aim", "aim", "join", "join", "leave", "stop")):
        case "kill":
            world.at(at, world.kill, name, rng.random() < 0.7)
        case "two":
            world.at(at, world.kill, name, rng.random() < 0.7)
            world.at(soon, world.kill, rng.choice(names), rng.random() < 0.7)
        case "ahead":
            world.at(at, world.kill_the_one_ahead)
        case "aim":
            world.aims.add(rng.choice(("ahead", "server", "leaver", "backup", "drain")))
            world.at(at, world.kill, name, True) if rng.random() < 0.5 else world.at(at, world.join, "site 0 new")
        case "join":
            world.at(at, world.join, rng.choice(("site 0 new", "site z new")))
        case "leave":
            world.at(at, world.leave, name)
        case "stop":
            world.at(at, world.stop, name, rng.choice((3.0, 10.0, 25.0)))


def check(world: World, *, ignores_restored: bool = False) -> None:
    """Compare the members with the oracle, bit for bit.

    Raises:
        Differs: logs, merged commits or W differ.
    """
    ended = [site for site in world.everyone if site.has_finished]
    if world.outcome == "too few":
        ended = [site for site in world.alive() if site.membership.generation >= 0]
        newest = max((site.membership.generation for site in ended), default=-1)
        ended = [site for site in ended if not site.membership.was_dropped(newest)]
    if world.outcome == "lost" or not ended:
        return
    log = max((site.membership.log for site in ended), key=lambda log: log.generation)
    generations = [record.generation for record in log.records]
    left = [
        site
        for site in world.everyone
        if site.has_left and site.preparing is not None and site.preparing.decision.record.generation in generations
    ]
    oracle = Oracle(world.task, log.records, ignores_restored)
    for site in ended:
        if site.membership.log.records != log.records[: len(site.membership.log.records)]:
            raise Differs(f"{site.name}: its log is not the beginning of the others' log")
        if site.has_finished and site.training is not None and not np.array_equal(site.training.w, oracle.w):
            raise Differs(f"{site.name}: W")
        if site.has_finished and site.rounds != rounds_of(site, log, world.task.n_rounds):
            raise Differs(f"{site.name}: it has trained rounds {site.rounds}")
    for site in ended + left:
        for key, commit in site.training.trace.items() if site.training is not None else ():
            if commit != oracle.commits[key].tobytes():
                raise Differs(f"{site.name}: the commit of exchange {key}")


def rounds_of(site: Site, log: MembershipLog, n_rounds: int) -> list[int]:
    """Rounds that the log asks of a process: those of its members, from the record on with which it came."""
    came = max(i for i, record in enumerate(log.records) if site.client in record.joiners)
    rounds: list[int] = []
    for t in range(log.records[0].first_round, n_rounds):
        says = max(i for i, record in enumerate(log.records) if record.first_round <= t)
        if says >= came and site.client in log.records[says].members:
            rounds.append(t)
    return rounds


def count(seeds: range) -> tuple[Counter[str], dict[int, str]]:
    """Run histories; what happened in them, and those that failed."""
    stats: Counter[str] = Counter()
    failed: dict[int, str] = {}
    for seed in seeds:
        try:
            world = play(seed)
            check(world)
        except Exception as error:
            failed[seed] = f"{type(error).__name__}: {error}"
        else:
            stats += world.stats
            stats[f"ended: {world.outcome}"] += 1
    return stats, failed
