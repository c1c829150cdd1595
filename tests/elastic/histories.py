"""Random histories of an elastic run, each a function of its seed, and their comparison with the plain loop."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.transport.chunks import shard_bounds
from tests.elastic.oracle import Entry, Outcome, Plan, replay
from tests.elastic.secured import Secured, shift_of
from tests.elastic.sites import Run, Setup, Site, rng_of
from tests.elastic.world import World

SERVERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 1.0},
    "nesterov": {"lr": 0.7, "momentum": 0.9},
    "adam": {"lr": 0.01, "betas": (0.9, 0.99), "tau": 1e-3},
    "yogi": {"lr": 0.01, "betas": (0.9, 0.99), "tau": 1e-3},
}
NAMES = "abcdefg"


class HistoryError(AssertionError):
    """What went wrong in a history."""


def step(x: Tensor, X: list[Tensor], block: int, client: int, number: int) -> Tensor:
    """A local step that depends on all blocks, on the client and on the step, without a sum."""
    place = torch.arange(x.numel(), dtype=torch.float32)
    noise = torch.sin(place * 0.37 + (12.9898 * client + 78.233 * number + 1.3 * block) % 6.283)
    x = x - 0.07 * (x - 0.3 * client) + 0.05 * noise
    for other, values in enumerate(X):
        if other != block:
            x = x + 0.02 * torch.sin(values[7])
    return x


def samples(client: int, number: int) -> int:
    """How many samples a step has."""
    return 1 + (2 * client + number) % 3


class History:
    """One history, made of its seed.

    Args:
        seed: Names it.
        fixed: Choices that are not drawn, by name, as in :attr:`drawn`.
    """

    def __init__(self, seed: int, **fixed: Any) -> None:
        rng = self.rng = rng_of(seed)
        K = rng.choice([2, 4])
        n = rng.choice([2, 3, 4, 4, 5, 6])
        self.drawn: dict[str, Any] = {
            "K": K,
            "n": n,
            "blocks": rng.choice([1, 2, 3]),
            "delay": rng.choice([0, K // 2, K, K + 2, 2 * K, 3 * K]),
            "rounds": rng.randint(5, 10),
            "topology": rng.choice(["star", "sharded"]),
            "server": rng.choice(["sgd", "sgd", "nesterov", "adam", "yogi"]),
            "compression": rng.choice(["none", "none", "none", "int8", "int4"]),
            "order": rng.choice(["sequential", "random", "cyclic"]),
            "cohort": rng.choice([None, None, 1, 2, 3]),
            "sampling": rng.choice(["uniform", "rotation"]),
            "weighting": rng.choice(["uniform", "samples"]),
            "in_flight_value": rng.choice(["local", "local", "anchor"]),
            "min_clients": rng.choice([1, 1, 2]),
            "dtype": rng.choice(["float32", "float32", "float32", "bfloat16"]),
            "begin": rng.choice([-1, -1, -1, -1, 3]),
        }
        # From draws of its own: histories without a warm-up are what they were before there was one.
        self.drawn["warmup"] = random.Random(f"{seed} warm-up").choice([0, 0, 1, 3, 5])
        self.drawn |= fixed
        d = self.drawn
        self.seed = seed
        self.settings = settings_of(d, seed)
        draw = torch.Generator().manual_seed(seed)
        sizes = [rng.choice([700, 2100, 3500]) for _ in range(d["blocks"])]
        dtype, names = getattr(torch, d["dtype"]), NAMES[: d["n"]]
        self.initial = [torch.randn(size, generator=draw).to(dtype).float() for size in sizes]
        holders = frozenset(name for name in names if rng.random() < 0.5) or frozenset(names[-1])
        self.world = World(seed)
        cohorts = Cohorts(0, d["cohort"], d["sampling"], seed)
        self.setup = Setup(
            self.settings,
            Schedule(d["order"], d["blocks"], seed, cohorts),
            self.initial,
            d["rounds"] + max(d["begin"], 0),
            step,
            samples,
            d["min_clients"],
            dtype,
            (d["begin"], holders),
            self.secured(),
        )
        self.run = Run(self.world, self.setup, names)
        self.plan_faults()

    def secured(self) -> Secured | None:
        """What the sites share for secure sums; None for the plain mean."""
        return None

    def plan_faults(self) -> None:
        """Draw what goes wrong, and when."""
        rng, d, run = self.rng, self.drawn, self.run
        span = d["rounds"] * d["K"] * 1.8
        for _ in range(rng.randint(1, 6)):
            at, name = 15 + rng.random() * span, rng.choice(NAMES[: d["n"]])
            kind = rng.choice(["kill"] * 4 + ["stop", "leave", "join", "burst", "burst", "ahead", "ahead"])
            again = rng.random() < 0.7
            if kind == "kill":
                self.at(at, name, lambda s, again=again: run.kill(s, again))
            elif kind == "burst":  # a second loss within the regroup of the first
                other = NAMES[(NAMES.index(name) + rng.randint(1, d["n"])) % d["n"]]
                self.at(at, name, lambda s, again=again: run.kill(s, again))
                self.at(at + rng.random() * 12, other, lambda s, again=again: run.kill(s, again))
            elif kind == "ahead":
                self.at(at, name, lambda s: run.kill(s, True))
                self.world.after(at + 6 + rng.random() * 14, self.kill_ahead)
            elif kind == "stop":
                for_s = rng.choice([2.0, 15.0, 60.0])
                self.at(at, name, lambda s, for_s=for_s: run.freeze(s, for_s))
            elif kind == "leave":
                self.at(at, name, run.leave)
            else:
                self.world.after(at, lambda: self.join(NAMES[d["n"]]))

    def at(self, when: float, name: str, event: Any) -> None:
        """Let something happen to the process of a site that is alive then."""

        def happen() -> None:
            site = next((s for s in reversed(self.run.sites) if s.name == name and s.is_alive), None)
            if site is not None and self.run.newest >= 0:
                event(site)

        self.world.after(when, happen)

    def kill_ahead(self) -> None:
        """Kill a site that has started the newest round, if others have not."""
        members = [s for s in self.run.sites if s.is_member]
        if members:
            first = max(members, key=lambda s: s.transport.started)
            if any(s.transport.started < first.transport.started for s in members):
                self.run.kill(first, self.rng.random() < 0.5)

    def join(self, name: str) -> None:
        """A site that was never there."""
        if not any(s.name == name and s.is_alive for s in self.run.sites) and self.run.newest >= 0:
            self.run.coming += 1
            self.run.new_site(name)

    # --- what came out ------------------------------------------------------------------------------------------------

    def check(self) -> Counter[str]:
        """Let it happen, and compare with the loop; returns what occurred."""
        is_over = self.world.run(lambda: self.run.is_over)
        for site in self.run.sites:
            if site.actor is not None and site.actor.error is not None:
                raise HistoryError(f"{site.name}: {site.actor.error!r}") from site.actor.error
        try:
            if not is_over:
                raise HistoryError(f"nothing happens any more: {self.standing()}")
            if self.run.outcome:
                return Counter([self.run.outcome])
            sites = [s for s in self.run.sites if (s.is_member and s.has_drained) or s.has_gone_home]
            if sites:
                self.compare(sites)
                self.note_log()
            return self.run.seen
        finally:
            for site in self.run.sites:
                if site.actor is not None:
                    site.actor.kill()

    def note_log(self) -> None:
        """Count what occurred, by the log."""
        seen, before = self.run.seen, self.run.log.records[0]
        for record in self.run.log.records[1:]:
            seen["regroups"] += 1
            seen["regroups after which n is what it was"] += record.first_round == before.first_round
            seen["joins in the warm-up"] += bool(record.joiners) and record.first_round <= self.drawn["warmup"]
            seen["regroups from warm-up to delay"] += before.first_round < self.drawn["warmup"] < record.first_round
            seen["losses of a star's server"] += before.order[0] not in record.members
            newest = {b: self.newest_kept(record, b) for b in range(len(self.initial))}
            for piece in record.restored:
                kind = "anew" if piece.as_of is None else "stale" if piece.as_of[0] < newest[piece.block] else "whole"
                seen[f"lost server state restored {kind}"] += 1
            before = record
        seen["histories compared"] += 1

    def newest_kept(self, record: Record, block: int) -> tuple[int, int]:
        """The newest kept exchange of a block."""
        keys = [key for site in self.run.sites for key in site.landed if key[1] == block and key <= record.kept]
        return max(keys, default=(-1, -1))

    def standing(self) -> str:
        """Where all sites are, for messages."""
        return "; ".join(
            f"{s.name}{s.client} alive={s.is_alive} gen={s.membership.generation} sealed={s.membership.sealed} "
            f"started={s.transport.started} landed={s.transport.store.landed} drained={s.has_drained}"
            for s in self.run.sites
        )

    def compare(self, sites: list[Site]) -> None:
        """All members have the loop's bits, at the end and after every exchange."""
        log = self.run.log
        for site in sites:
            if site.membership.log.records != log.records[: len(site.membership.log.records)]:
                raise HistoryError("logs differ")
        outcome = self.replayed(log)
        for site in sites:
            for key, value in sorted(site.landed.items()):
                if not torch.equal(value, outcome.after[key]):
                    raise HistoryError(f"W after {key} at {site.name} differs from the loop's")
            for block, W in enumerate(outcome.W):
                if not torch.equal(site.flat.pack(block), W):
                    raise HistoryError(f"W of block {block} at {site.name} differs from the loop's")

    def replayed(self, log: MembershipLog) -> Outcome:
        """What the loop makes of the log."""
        d, cohorts = self.drawn, self.setup.schedule.cohorts

        def cohort(t: int, members: Any) -> dict[int, int]:
            made = replace(self.setup.schedule, cohorts=replace(cohorts, members_at=lambda _: members))
            return {i: b for b, clients in made.work_of(t, {}).items() for i in clients}

        def weight(client: int, t: int) -> int:
            return sum(samples(client, t * d["K"] + k) for k in range(d["K"])) if d["weighting"] == "samples" else 1

        server = {name: value for name, value in SERVERS[d["server"]].items()}
        plan = Plan(
            self.initial, self.setup.rounds, d["K"], d["delay"], d["warmup"], self.step_by(log), cohort, weight,
            local=d["in_flight_value"] == "local", server=d["server"], compression=d["compression"],
            secure=0 if self.setup.secure is None else self.setup.secure.width,
            hold=lambda value: value.to(self.setup.dtype).float(), **server,
        )  # fmt: skip
        return replay(plan, self.entries(log))

    def step_by(self, log: MembershipLog) -> Any:
        """The local step; where sums are secure, with what the process draws that trains the round."""
        if self.setup.secure is None:
            return step

        def salted(x: Tensor, X: list[Tensor], block: int, client: int, number: int) -> Tensor:
            t = number // self.drawn["K"]
            joined = [r for r in log.records if client in r.joiners and r.first_round <= t][-1]
            salt = self.run.salts.get((client, joined.generation), b"")  # lost before it had opened: it sent nothing
            who: Any = client + shift_of(salt) if salt else client
            return step(x, X, block, who, number)

        return salted

    def entries(self, log: MembershipLog) -> list[Entry]:
        """The log in the loop's words."""
        entries: list[Entry] = []
        for before, record in zip((None, *log.records), log.records, strict=False):
            restored: list[tuple[int, slice, Any]] = []
            for piece in record.restored:
                assert before is not None
                cut = shard_bounds(self.initial[piece.block].numel(), len(before.order), self.settings.topology)
                restored.append((piece.block, cut[before.order.index(piece.server)], piece.as_of))
            entries.append(
                Entry(
                    record.generation,
                    record.members,
                    record.joiners,
                    record.first_round,
                    record.kept,
                    tuple(restored),
                    record.drops,
                )
            )
        return entries


def settings_of(drawn: dict[str, Any], seed: int) -> Settings:
    """The package's settings for what was drawn."""
    from lightning_parablock.server.optimizers import SERVER_OPTIMIZERS

    return Settings(
        local_steps=drawn["K"],
        delay_steps=drawn["delay"],
        delay_warmup_rounds=drawn["warmup"],
        topology=drawn["topology"],
        server_optimizer=SERVER_OPTIMIZERS[drawn["server"]](**SERVERS[drawn["server"]]),
        compression=drawn["compression"],
        block_order=drawn["order"],
        weighting=drawn["weighting"],
        in_flight_value=drawn["in_flight_value"],
        seed=seed,
        straggler_timeout_s=1e6,
        aggregation=SecureAggregation(drawn["secure"]) if drawn.get("secure") else "mean",
    )
