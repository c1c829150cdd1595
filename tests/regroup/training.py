"""A simulated site's training: what would be its main thread, as a generator that yields pauses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lightning_parablock.regroup.keys import Key
from lightning_parablock.settings.delay import Delay
from tests.regroup import toy
from tests.regroup.toy import M, Task, Values

if TYPE_CHECKING:
    from tests.regroup.site import Site


class Training:
    """Rounds of one client.

    Args:
        site: The site: tells whether a round may start and what has landed, and takes the deltas.
        w: W as of the newest merged round, shape (n_blocks, M); changed in place.
        merged: That round.

    Attributes:
        in_flight: Deltas that are submitted and not merged, as (round, block, delta).
        trace: What was merged, by exchange.
    """

    def __init__(self, site: Site, w: Values, merged: int) -> None:
        self.site, self.task, self.w, self.merged = site, site.task, w, merged
        self.x = w.copy()
        self.residual = np.zeros((self.task.n_blocks, M))
        self.in_flight: list[tuple[int, int, Values]] = []
        self.trace: dict[Key, bytes] = {}
        self.block: int | None = None
        self.start: Values = w[0]

    def rounds(self, first: int) -> Iterator[float | None]:
        """Yields how long the next step takes, or None to be asked again once something has changed."""
        site, task = self.site, self.task
        whole, rest = divmod(task.delay_steps, task.local_steps)
        site.next_round = first
        yield from self.merge_up_to(self.due_before(first))
        for t in range(first, task.n_rounds):
            site.next_round = t
            while not site.may_start():
                yield None
            site.started = t
            site.rounds.append(t)
            self.block = b = site.block_of(t)
            if b is not None:
                self.start = self.x[b].copy()
            for step in range(task.local_steps):
                yield site.world.pace(site.name)
                if b is not None:
                    self.x[b] = toy.local_step(self.x, b, site.client, t * task.local_steps + step)
                if step + 1 == rest:
                    yield from self.merge_up_to(t - 1 - whole)
            delta = None if b is None else self.x[b] - self.start
            self.block = None
            if not rest and whole:
                yield from self.merge_up_to(t - whole)
            if b is not None and delta is not None:
                self.submit(t, b, delta)
            if not task.delay_steps or t < task.warmup_rounds:
                yield from self.merge_up_to(t)
        site.next_round = max(first, task.n_rounds)
        yield from self.merge_up_to(task.n_rounds - 1)

    def due_before(self, first: int) -> int:
        """The newest round that a joiner merges before its first one."""
        delay = Delay(*divmod(self.task.delay_steps, self.task.local_steps), self.task.warmup_rounds)
        return min(delay.newest_due_at_start(first), self.task.n_rounds - 1)

    def submit(self, t: int, b: int, delta: Values) -> None:
        before = self.residual[b].copy()
        if self.task.is_lossy:
            wanted = delta + before
            self.residual[b] = wanted - quantized(wanted)
        self.in_flight.append((t, b, delta))
        self.x[b] = self.held(b)
        self.site.submit((t, b), delta, before)

    def held(self, b: int) -> Values:
        value = self.w[b].copy()
        if self.task.is_local:
            for _, block, delta in self.in_flight:
                if block == b:
                    value = value + delta
        return value

    def merge_up_to(self, newest: int) -> Iterator[None]:
        while self.merged < newest:
            t = self.merged + 1
            blocks = sorted(self.site.work(t))
            while self.site.landed < (t, blocks[-1]):
                yield None
            for b in blocks:
                commit = self.site.commit_of((t, b))
                self.w[b] = self.w[b] + commit if self.task.is_lossy else commit
                self.trace[t, b] = commit.tobytes()
            self.in_flight = [one for one in self.in_flight if one[0] != t]
            for b in blocks:
                value = self.held(b)
                if b == self.block:
                    self.x[b] = self.x[b] + (value - self.start)
                    self.start = value
                else:
                    self.x[b] = value
            self.merged = t
            self.site.note_merge()


def quantized(values: Values) -> Values:
    """What a lossy codec makes of values."""
    return np.round(values * 32) / 32


def encoded(task: Task, delta: Values, residual: Values) -> Values:
    """What a client sends of a delta."""
    return quantized(delta + residual) if task.is_lossy else delta
