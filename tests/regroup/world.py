"""Time, messages, the arbiter's list and faults of a simulated run; everything follows from one seed."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.regroup.faults import Faults
from tests.regroup.site import Site
from tests.regroup.toy import Task

POLL = 3.0  # mean time between two looks at the arbiter's list
SILENCE = 6.0  # a process that is stopped for longer is not in the list any more
PATIENCE = 250.0  # a run in which nothing lands for longer than this hangs
N_EVENTS = 60_000


class Hang(Exception):
    """Sites wait for each other without end."""


class World(Faults):
    """A run.

    Args:
        task: What is trained.
        seed: Of lags, paces and all that sites leave to chance.
        site_class: The simulated site; tests of spoilt rules give another one.

    Attributes:
        now: The time; a local step takes about 1.
        processes: The newest process of each site, by name.
        everyone: All processes that ever ran.
        progress: When something has landed, or a fault has happened, most recently.
        outcome: How the run ended: "done", "lost" (nobody is left who holds W), "too few" or "" while it lasts.
        stats: What happened how often.
    """

    def __init__(self, task: Task, seed: int, site_class: type[Site] = Site, *, is_ordered: bool = True) -> None:
        self.task, self.site_class, self.is_ordered = task, site_class, is_ordered
        self.rng = random.Random(seed)
        self.now, self.progress, self.outcome = 0.0, 0.0, ""
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.n_events = 0
        self.processes: dict[str, Site] = {}
        self.everyone: list[Site] = []
        self.channels: dict[tuple[int, int, str], float] = {}
        self.cuts: dict[tuple[int, int], float] = {}
        self.paces: dict[str, float] = {}
        self.links: dict[str, float] = {}
        self.backup_lag = self.rng.choice((0.3, 3.0, 10.0))
        self.stats: Counter[str] = Counter()
        self.leftovers: dict[str, Any] = {}
        self.aims: set[str] = set()
        self.on_message: Callable[[Site, Site, str], bool] | None = None

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.n_events += 1
        heapq.heappush(self.events, (self.now + delay, self.n_events, call, args))

    def on(self, site: Site, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Something that a process does later, if it lives then; while it is stopped it waits."""
        self.at(delay, self.do, site, call, args)

    def do(self, site: Site, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not site.is_alive:
            return
        if site.is_stopped:
            site.mail.append((call, args))
        else:
            call(*args)

    def run(self) -> str:
        while not self.outcome and self.events:
            self.now, _, call, args = heapq.heappop(self.events)
            if self.now > self.progress + PATIENCE or self.n_events > N_EVENTS:
                if any(site.is_short_handed for site in self.alive()):
                    return self.end("too few")
                raise Hang(f"at {self.now:.0f}, {self.n_events} events")
            call(*args)
        return self.end("lost")

    def alive(self) -> list[Site]:
        return [site for site in self.processes.values() if site.is_alive]

    def end(self, outcome: str) -> str:
        self.outcome = self.outcome or outcome
        return self.outcome

    def look_for_end(self) -> None:
        """Call after any process has ended."""
        if not any(site.membership.generation >= 0 for site in self.alive()):
            if any(site.has_finished for site in self.everyone):
                self.end("done")
            elif any(site.membership.generation >= 0 for site in self.everyone):
                self.end("lost")

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, source: Site, target: Site, kind: str, generation: int, *body: Any) -> None:
        """In order between two processes for each of three lanes; not at all once one of them has died."""
        if self.on_message is not None and not self.on_message(source, target, kind):
            return
        if source is target:
            self.at(0.0, self.do, target, target.receive, (kind, source, generation, body))
            return
        lane = "backup" if kind == "backup" else "bulk" if kind in ("delta", "commit") else "control"
        lag = self.rng.expovariate(1.0) * self.rng.choice((0.1, 0.5, 2.0))
        lag *= self.backup_lag if lane == "backup" else self.link(target.name) if lane == "bulk" else 1.0
        arrives = self.now + lag
        if self.is_ordered or lane != "bulk":
            channel = (source.number, target.number, lane)
            arrives = self.channels[channel] = max(arrives, self.channels.get(channel, 0.0))
        self.at(arrives - self.now, self.deliver, source, target, kind, generation, body)

    def deliver(self, source: Site, target: Site, kind: str, generation: int, body: tuple[Any, ...]) -> None:
        if self.now > self.cuts.get((source.number, target.number), self.now):
            return
        self.do(target, target.receive, (kind, source, generation, body))

    def pace(self, name: str) -> float:
        mean = self.paces.setdefault(name, self.rng.choice((0.5, 1.0, 1.0, 2.5)))
        return mean * (0.5 + self.rng.random())

    def link(self, name: str) -> float:
        """How slow a site's link is."""
        return self.links.setdefault(name, self.rng.choice((0.3, 1.0, 1.0, 4.0)))

    # --- the arbiter --------------------------------------------------------------------------------------------------

    def list_now(self) -> list[Site]:
        """Who is alive: all that the arbiter says."""
        return [
            site
            for site in self.processes.values()
            if (site.is_alive and not (site.is_stopped and self.now - site.stopped_at > SILENCE))
            or (not site.is_alive and not site.said_goodbye and self.now - site.died_at < site.notice_after)
        ]

    def newest_generation(self) -> int:
        """The newest one that a process has opened which is not dead.

        In a real run a site that wakes up alone may go on as a second run unless ``min_clients`` is more than half.
        Here ``min_clients`` is small, and so such a site hears of the others even if they are stopped or have finished.
        """
        return max(
            (site.membership.generation for site in self.everyone if site.is_alive or site.has_finished), default=-1
        )
