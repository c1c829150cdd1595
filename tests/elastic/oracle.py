"""An elastic run as one plain loop that replays its membership log: what every history must equal bit for bit.

It imports nothing of the package; a log comes as plain records. Letters follow docs/method.md: W is the committed
model as one vector per block, X[i] the model of client i, s[i] what its active block started from, Delta[t, i] its
progress in round t, sent[t, i] what the server gets of it, e[i] what it has yet to get, K the local steps of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracle_codecs import arrives
from tests.oracle_secure import Sum, Told, secure_sum

Key = tuple[int, int]
Label = tuple[Key, int]
BEFORE: Key = (-1, -1)


@dataclass(frozen=True)
class Entry:
    """A record of the membership log in the words of the loop.

    Each lost piece of server state is (block, its part of the block, the version that replaces it).
    """

    generation: int
    members: tuple[int, ...]
    joiners: tuple[int, ...]
    n: int
    kept: Key
    restored: tuple[tuple[int, slice, Label | None], ...] = ()
    drops: bool = False  # what is not kept, of rounds before n, instead of doing it again


@dataclass(frozen=True)
class Plan:
    """What a run is made of."""

    initial: list[Tensor]
    rounds: int
    K: int
    delay: int
    warmup: int  # rounds without delay, before those that have it
    step: Callable[[Tensor, list[Tensor], int, int, int], Tensor]  # (x, X, block, client, step) -> x after it
    cohort: Callable[[int, Sequence[int]], dict[int, int]]  # (round, members) -> client -> its block
    weight: Callable[[int, int], int]  # (client, round) -> n_i
    local: bool = True
    server: str = "sgd"
    lr: float = 1.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    compression: str = "none"
    secure: int = 0  # bytes of a whole number of the secure sum of the deltas; 0: none. A codec is the commits' alone
    hold: Callable[[Tensor], Tensor] = lambda value: value  # what parameters can hold of it


@dataclass
class Outcome:
    """W at the end as parameters hold it, and what the server has of W after each exchange."""

    W: list[Tensor]
    after: dict[Key, Tensor]


def members_at(log: Sequence[Entry], t: int) -> tuple[int, ...]:
    return [entry for entry in log if entry.n <= t][-1].members


def contributors(log: Sequence[Entry], key: Key, cohort: Sequence[int]) -> list[int]:
    gone = set()
    for entry in log[1:]:
        if entry.n > key[0] and key > entry.kept:
            gone |= set(cohort) - set(entry.members) | set(entry.joiners)
    return [i for i in sorted(cohort) if i not in gone]


def is_dropped(log: Sequence[Entry], key: Key) -> bool:
    return any(entry.drops and entry.kept < key and key[0] < entry.n for entry in log)


def replay(plan: Plan, log: Sequence[Entry]) -> Outcome:
    """Run the method as the log says that it ran."""
    K, D = plan.K, len(plan.initial)
    q, r = divmod(plan.delay, K)
    W = [value.clone() for value in plan.initial]
    exact = [value.clone() for value in plan.initial]  # the server's W, where commits are W and not increments
    start = plan.tau**2 if plan.server in ("adam", "yogi") else 0.0
    state = [{"m": torch.zeros_like(w), "v": torch.full_like(w, start), "e": torch.zeros_like(w)} for w in plan.initial]
    fresh = [{name: value.clone() for name, value in of_block.items()} for of_block in state]
    saved: dict[tuple[int, Label], dict[str, Tensor]] = {}
    newest: list[Key] = [BEFORE] * D
    generation, pending = log[0].generation, list(log[1:])
    X: dict[int, list[Tensor]] = {}
    s: dict[int, Tensor] = {}
    e: dict[int, list[Tensor]] = {}
    in_flight: dict[int, list[tuple[int, int, Tensor]]] = {}
    sent: dict[tuple[int, int], Tensor] = {}
    after: dict[Key, Tensor] = {}
    sums: dict[Key, Sum] = {}
    told: dict[int, Told] = {}  # of each block, by its newest merged exchange that has told anything
    works: dict[int, dict[int, int]] = {}
    merged = log[0].n - 1

    def save(b: int) -> None:
        saved[b, (newest[b], generation)] = {name: value.clone() for name, value in state[b].items()}

    def work_of(t: int) -> dict[int, int]:
        if t not in works:
            works[t] = plan.cohort(t, members_at(log, t))
        return works[t]

    def blocks_of(t: int) -> list[int]:
        return sorted(set(work_of(t).values()))

    def held(i: int, b: int) -> Tensor:
        value = W[b]
        for _, block, delta in in_flight[i]:
            if block == b and plan.local:
                value = value + delta
        return value

    def enter(key: Key) -> None:
        nonlocal generation
        while pending and pending[0].kept < key:
            entry = pending.pop(0)
            for b, part, label in entry.restored:
                of = fresh[b] if label is None else saved[b, label]
                for name, value in state[b].items():
                    value[part] = of[name][part]
            generation = entry.generation
            for b in range(D):
                save(b)

    def serve(t: int, b: int) -> None:
        enter((t, b))
        if is_dropped(log, (t, b)):  # W, server state, scale and residuals as they were
            newest[b], after[t, b] = (t, b), exact[b]
            return
        who = contributors(log, (t, b), [i for i, block in work_of(t).items() if block == b])
        G = torch.zeros_like(W[b])
        weights = [plan.weight(i, t) for i in who]
        if who and not plan.secure:
            G = weights[0] * sent[t, who[0]]
            for n, i in zip(weights[1:], who[1:], strict=True):
                G = G + n * sent[t, i]
            G = G / sum(weights)
        if plan.secure:
            assert who == sorted(i for i, block in work_of(t).items() if block == b), "a sum has all or none"
            G, newly_told = sums[t, b].mean, sums[t, b].told
            told.update({} if newly_told is None else {b: newly_told})
        now = state[b]
        move = G
        if plan.server == "nesterov":
            now["v"] = plan.momentum * now["v"] + G
            move = G + plan.momentum * now["v"]
        elif plan.server in ("adam", "yogi"):
            beta1, beta2 = plan.betas
            now["m"] = beta1 * now["m"] + (1 - beta1) * G
            if plan.server == "adam":
                now["v"] = beta2 * now["v"] + (1 - beta2) * (G * G)
            else:
                now["v"] = now["v"] - (1 - beta2) * (G * G) * torch.sign(now["v"] - G * G)
            move = now["m"] / (torch.sqrt(now["v"]) + plan.tau)
        if plan.lr != 1:
            move = plan.lr * move
        if plan.compression == "none":
            exact[b] = exact[b] + move
            W[b] = plan.hold(exact[b])
        else:
            wanted = move + now["e"]
            before = W[b]
            exact[b] = W[b] = plan.hold(before + arrives(plan.compression, wanted))
            now["e"] = wanted - (W[b] - before)
        newest[b] = (t, b)
        after[t, b] = exact[b]
        save(b)

    def add_up_securely(t: int, b: int, Delta: dict[int, Tensor]) -> None:
        cohort = [i for i, block in sorted(work_of(t).items()) if block == b]
        sums[t, b] = secure_sum(
            {i: Delta[i] for i in cohort},
            {i: e[i][b] for i in cohort},
            {i: plan.weight(i, t) for i in cohort},
            n_cohort=len(cohort),
            width=plan.secure,
            before=told.get(b),
            numel=W[b].numel(),
        )
        for i in cohort:
            e[i][b] = sums[t, b].left[i]

    def merge(t: int, active: dict[int, int]) -> None:
        nonlocal merged
        if t <= merged:  # before the first round
            return
        assert t == merged + 1
        merged = t
        for b in blocks_of(t):
            serve(t, b)
        for i in X:
            in_flight[i] = [flight for flight in in_flight[i] if flight[0] != t]
            for b in blocks_of(t):
                value = plan.hold(held(i, b))
                if active.get(i) == b:
                    X[i][b] = X[i][b] + (value - s[i])
                    s[i] = value
                else:
                    X[i][b] = value

    for b in range(D):
        save(b)
    for t in range(log[0].n, plan.rounds):
        members = members_at(log, t)
        for i in [i for i in X if i not in members]:
            del X[i]
        for i in members:
            if i not in X or any(entry.n == t and i in entry.joiners for entry in log):
                X[i], in_flight[i] = [value.clone() for value in W], []
                e[i] = [torch.zeros_like(value) for value in W]
        active = dict(work_of(t))
        for i, b in active.items():
            s[i] = X[i][b]
        for k in range(K):
            for i, b in active.items():
                X[i][b] = plan.step(X[i][b], X[i], b, i, t * K + k)
            if k + 1 == r and t - 1 - q >= plan.warmup:
                merge(t - 1 - q, active)
        Delta = {i: X[i][b] - s[i] for i, b in active.items()}
        if not r and q and t - q >= plan.warmup:
            merge(t - q, {})
        for b in blocks_of(t) if plan.secure else ():
            if not is_dropped(log, (t, b)):
                add_up_securely(t, b, Delta)
        for i, b in active.items():
            sent[t, i] = Delta[i]
            if plan.compression != "none" and not plan.secure:
                wanted = Delta[i] + e[i][b]
                sent[t, i] = arrives(plan.compression, wanted)
                e[i][b] = wanted - sent[t, i]
            in_flight[i].append((t, b, Delta[i]))
            X[i][b] = plan.hold(held(i, b))
        if not plan.delay or t < plan.warmup:
            merge(t, {})
    for t in range(merged + 1, plan.rounds):
        merge(t, {})
    return Outcome(W, after)
