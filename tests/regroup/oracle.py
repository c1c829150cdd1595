"""The method with changing members as one plain loop: replays a membership log, and knows nothing of messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_parablock.regroup.log import Record
from tests.regroup import toy
from tests.regroup.toy import M, Task, Values


@dataclass
class Client:
    """One client: its model, residuals, and deltas in flight as (round, block, delta)."""

    x: Values
    residual: Values
    in_flight: list[tuple[int, int, Values]]
    start: Values | None = None


class Oracle:
    """Replays a log.

    Args:
        task: What is trained.
        log: The records.
        ignores_restored: Take every lost piece of server state as restored exactly, whatever the log says.

    Attributes:
        w: W after the last round, shape (n_blocks, M).
        commits: What each exchange has committed, by (round, block): W of the block, or its increment if lossy.
    """

    def __init__(self, task: Task, log: tuple[Record, ...], ignores_restored: bool = False) -> None:
        self.task, self.log, self.ignores_restored = task, log, ignores_restored
        first = log[0].first_round
        self.w = toy.initial(task.n_blocks, first if log[0].kept[0] >= 0 else -1)
        self.momentum, self.left_out = np.zeros_like(self.w), np.zeros_like(self.w)
        self.commits: dict[tuple[int, int], Values] = {}
        self.sent: dict[tuple[int, int], Values] = {}
        self.clients: dict[int, Client] = {}
        self.current = 0
        self.states: dict[tuple[int, tuple[int, int], int], tuple[Values, Values]] = {}
        self.note_states(log[0].kept)
        self.next_merge = first
        for t in range(first, task.n_rounds):
            self.play(t)
        self.merge_up_to(task.n_rounds - 1, {})

    def members(self, t: int) -> tuple[int, ...]:
        known = self.log[0].members
        for record in self.log:
            if record.first_round <= t:
                known = record.members
        return known

    def work(self, t: int) -> dict[int, tuple[int, ...]]:
        return toy.work(self.task, t, self.members(t))

    def play(self, t: int) -> None:
        task = self.task
        whole, rest = divmod(task.delay_steps, task.local_steps)
        fresh = {i for record in self.log if record.first_round == t for i in record.joiners}
        for i in self.members(t):
            if i in fresh or i not in self.clients:
                self.clients[i] = Client(self.w.copy(), np.zeros_like(self.w), [])
        self.clients = {i: client for i, client in self.clients.items() if i in self.members(t)}

        training = {i: b for b, who in self.work(t).items() for i in who}
        for i, b in training.items():
            self.clients[i].start = self.clients[i].x[b].copy()
        for step in range(task.local_steps):
            for i, b in training.items():
                x = self.clients[i].x
                x[b] = toy.local_step(x, b, i, t * task.local_steps + step)
            if rest == step + 1:
                self.merge_up_to(t - 1 - whole, training)
        deltas = {i: self.clients[i].x[b] - self.clients[i].start for i, b in training.items()}
        if not rest and whole:
            self.merge_up_to(t - whole, {})
        for i, b in training.items():
            client = self.clients[i]
            message = deltas[i]
            if task.is_lossy:
                wanted = deltas[i] + client.residual[b]
                message = np.round(wanted * 32) / 32
                client.residual[b] = wanted - message
            self.sent[t, i] = message
            client.in_flight.append((t, b, deltas[i]))
            client.x[b] = self.held(client, b)
        if not task.delay_steps or t < task.warmup_rounds:
            self.merge_up_to(t, {})

    def held(self, client: Client, b: int) -> Values:
        value = self.w[b].copy()
        if self.task.is_local:
            for _, block, delta in client.in_flight:
                if block == b:
                    value = value + delta
        return value

    def merge_up_to(self, newest: int, training: dict[int, int]) -> None:
        while self.next_merge <= newest:
            t = self.next_merge
            self.next_merge += 1
            for b in self.work(t):
                self.commit(t, b)
            for i, client in self.clients.items():
                client.in_flight = [one for one in client.in_flight if one[0] != t]
                for b in self.work(t):
                    value = self.held(client, b)
                    if training.get(i) == b:
                        client.x[b] = client.x[b] + (value - client.start)
                        client.start = value
                    else:
                        client.x[b] = value

    def commit(self, t: int, b: int) -> None:
        while self.current + 1 < len(self.log) and self.log[self.current + 1].kept < (t, b):
            self.enter(self.log[self.current + 1])
        who = set(self.work(t)[b])
        for record in self.log[1:]:
            if record.first_round > t and record.kept < (t, b):
                who = {i for i in who if i in record.members and i not in record.joiners}
        mean, total = np.zeros(M), 0
        for i in sorted(who):
            mean = mean + toy.samples(i, t) * self.sent[t, i]
            total += toy.samples(i, t)
        if total:
            mean = mean / total
        if self.task.server == "nesterov":
            self.momentum[b] = toy.MU * self.momentum[b] + mean
            mean = toy.LR * (mean + toy.MU * self.momentum[b])
        if self.task.is_lossy:
            wanted = mean + self.left_out[b]
            rounded = np.round(wanted * 32) / 32
            self.left_out[b] = wanted - rounded
            self.commits[t, b] = rounded
            self.w[b] = self.w[b] + rounded
        else:
            self.w[b] = self.w[b] + mean
            self.commits[t, b] = self.w[b].copy()
        self.states[b, (t, b), self.log[self.current].generation] = (self.momentum[b].copy(), self.left_out[b].copy())

    def enter(self, record: Record) -> None:
        """Lost pieces of server state are what the log says."""
        before = self.log[self.current]
        servers = before.order[:1] if self.task.topology == "star" else before.order
        for lost in () if self.ignores_restored else record.restored:
            place = servers.index(lost.server)
            for k in range(place * M // len(servers), (place + 1) * M // len(servers)):
                if lost.as_of is None:
                    self.momentum[lost.block, k] = self.left_out[lost.block, k] = 0.0
                else:
                    momentum, left_out = self.states[lost.block, *lost.as_of]
                    self.momentum[lost.block, k], self.left_out[lost.block, k] = momentum[k], left_out[k]
        self.current += 1
        self.note_states(record.kept)

    def note_states(self, kept: tuple[int, int]) -> None:
        for b in range(self.task.n_blocks):
            state = (self.momentum[b].copy(), self.left_out[b].copy())
            self.states[b, kept, self.log[self.current].generation] = state
