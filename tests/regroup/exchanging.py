"""A simulated site's part in the exchanges of one generation: as a client, as a server, and as a holder of backups."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Label
from tests.regroup import toy
from tests.regroup.toy import M, Task, Values
from tests.regroup.training import encoded, quantized

if TYPE_CHECKING:
    from tests.regroup.site import Site

State = tuple[Values, Values]
"""Momentum and residual of a part of a block."""


def parts(task: Task, record: Record) -> dict[int, slice]:
    """Which part of each block a server serves, by client id."""
    servers = record.order[:1] if task.topology == "star" else record.order
    n = len(servers)
    return {server: slice(i * M // n, (i + 1) * M // n) for i, server in enumerate(servers)}


class Exchanges:
    """What one member keeps of exchanges.

    Attributes:
        log: The log up to the generation that is open.
        outgoing: Of each own exchange that has not landed: delta and residual before it.
        pieces: Received parts of commits, by exchange and server, of this generation alone.
        whole: Complete commits, kept until all members have landed and this one has merged them.
        landed: Newest exchange that is here together with all before it.
        w: W as of ``landed``: what the server of a redone exchange starts from.
        inbox: Received parts of deltas, by exchange and client.
        served: For each block the versions of the own piece of state, oldest first.
        serving_w: W of the own part after the newest served exchange.
        backups: Versions of other servers' pieces, by block and server.
        known: What each member is known to have landed.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.task = site, site.task
        self.log = MembershipLog()
        self.outgoing: dict[Key, tuple[Values, Values]] = {}
        self.pieces: defaultdict[Key, dict[int, Values]] = defaultdict(dict)
        self.whole: dict[Key, Values] = {}
        self.landed: Key = (-1, -1)
        self.w: Values = np.zeros((0, M))
        self.inbox: defaultdict[Key, dict[int, Values]] = defaultdict(dict)
        self.served: dict[int, list[tuple[Label, State]]] = {}
        self.serving_w: Values = self.w
        self.newest_served: Key = (-1, -1)
        self.backups: defaultdict[tuple[int, int], dict[Label, State]] = defaultdict(dict)
        self.known: dict[int, Key] = {}
        self.layout: dict[int, slice] = {}

    # --- which exchanges there are ------------------------------------------------------------------------------------

    def work(self, t: int) -> dict[int, tuple[int, ...]]:
        return toy.work(self.task, t, self.log.members_at(t))

    def contributors(self, key: Key) -> tuple[int, ...]:
        return self.log.contributors(key, self.work(key[0])[key[1]])

    def after(self, key: Key) -> Key | None:
        """The next exchange; None after the last one."""
        t = key[0]
        if t >= self.log.records[0].first_round:
            later = [b for b in self.work(t) if b > key[1]]
            if later:
                return t, min(later)
        return (t + 1, min(self.work(t + 1))) if t + 1 < self.task.n_rounds else None

    # --- client -------------------------------------------------------------------------------------------------------

    def submit(self, key: Key, delta: Values, residual: Values) -> None:
        self.outgoing[key] = (delta, residual)
        self.upload(key)

    def upload(self, key: Key) -> None:
        if self.site.accepts(self.log.generation) and self.site.client in self.contributors(key):
            message = self.encode(key)
            for server, part in self.layout_of(key).items():
                self.site.send_to(server, "delta", key, message[part])

    def encode(self, key: Key) -> Values:
        """The same bits each time: from the residual before the exchange."""
        return encoded(self.task, *self.outgoing[key])

    def layout_of(self, key: Key) -> dict[int, slice]:
        del key
        return self.layout

    def on_commit(self, server: int, key: Key, values: Values) -> None:
        if key in self.whole or key <= self.landed:
            return
        self.pieces[key][server] = values
        if self.pieces[key].keys() == self.layout_of(key).keys():
            out = np.zeros(M)
            for one, part in self.layout_of(key).items():
                out[part] = self.pieces[key][one]
            self.whole[key] = out
            self.land()

    def land(self) -> None:
        """Exchanges land in order."""
        before = self.landed
        while (key := self.after(self.landed)) is not None and key in self.whole:
            self.landed = key
            self.w[key[1]] = self.w[key[1]] + self.whole[key] if self.task.is_lossy else self.whole[key]
        if self.landed > before:
            self.known[self.site.client] = self.landed
            self.release()
            self.site.note_landing()

    def release(self) -> None:
        """Forget what nobody can ask for any more."""
        for key in [key for key in self.outgoing if key <= self.landed]:
            del self.outgoing[key]
        everywhere = min(self.known.values(), default=self.landed)
        for key in [key for key in self.whole if key <= everywhere and key[0] <= self.site.merged]:
            del self.whole[key]
        for versions in self.served.values():
            older = sum(label[0] <= self.landed for label, _ in versions)
            del versions[: max(older - 1, 0)]
        for held in self.backups.values():
            for label in sorted(label for label in held if label[0] <= self.landed)[:-1]:
                del held[label]

    # --- server -------------------------------------------------------------------------------------------------------

    def on_delta(self, client: int, key: Key, values: Values) -> None:
        self.inbox[key][client] = values
        self.serve()

    def serve(self) -> None:
        """Serve all exchanges whose deltas are here, in order."""
        own = self.layout.get(self.site.client)
        while own is not None and self.site.accepts(self.log.generation):
            key = self.after(self.newest_served)
            if key is None or not self.inbox[key].keys() >= set(self.contributors(key)):
                return
            self.newest_served = key
            commit, state = self.aggregate(key, own)
            label = (key, self.log.generation)
            if self.task.has_server_state:
                self.served[key[1]].append((label, state))
            for member in self.log.newest.members:
                self.site.send_to(member, "commit", key, commit)
            self.back_up(key[1], label, state)

    def aggregate(self, key: Key, part: slice) -> tuple[Values, State]:
        t, b = key
        momentum, left_out = self.served[b][-1][1] if self.task.has_server_state else (np.zeros(0), np.zeros(0))
        step, n = np.zeros(part.stop - part.start), 0
        for client in self.contributors(key):
            step = step + toy.samples(client, t) * self.inbox[key][client]
            n += toy.samples(client, t)
        step = step / n if n else step
        if self.task.server == "nesterov":
            momentum = toy.MU * momentum + step
            step = toy.LR * (step + toy.MU * momentum)
        if not self.task.is_lossy:
            self.serving_w[b, part] = self.serving_w[b, part] + step
            return self.serving_w[b, part].copy(), (momentum, left_out)
        wanted = step + left_out
        commit = quantized(wanted)
        self.serving_w[b, part] = self.serving_w[b, part] + commit
        return commit, (momentum, wanted - commit)

    def back_up(self, block: int, label: Label, state: State) -> None:
        """To the next member, behind all other traffic."""
        order = self.log.newest.order
        if self.task.has_server_state and len(order) > 1:
            to = order[(order.index(self.site.client) + 1) % len(order)]
            self.site.send_to(to, "backup", block, label, state)

    def on_backup(self, server: int, block: int, label: Label, state: State) -> None:
        self.backups[block, server][label] = state
        self.site.world.note_backup(self.site, server, label[0])
