"""Each rule is needed: with one of them spoilt, random histories no longer have the bits of the plain loop.

The numbers are those of the rules in docs/method.md, "Elastic membership".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lightning_parablock.codecs.feedback import Residual
from lightning_parablock.elastic.landing import LandingTransport
from lightning_parablock.elastic.shard import Backups, VersionedShard
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import ParaBlockError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision, Report, Standing
from lightning_parablock.server.uploads import Upload
from tests.elastic import sites
from tests.elastic.histories import History, HistoryError
from tests.elastic.sites import Run, Site

MOST = 150
"""Histories until one has to fail."""
SEEN = (HistoryError, ParaBlockError)
"""How it has to fail."""

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")


def lands_after_its_report(patch: Patch) -> None:
    def seal(self: ElasticTransport) -> tuple[Standing, int]:
        served = self._shard.labels() if self._shard is not None else {}
        return Standing(self.log, self.store.landed, served, self._backups.labels(self.log.generation)), self.started

    patch.setattr(ElasticTransport, "seal", seal)


def waits_for_lost_clients(patch: Patch) -> None:
    patch.setattr(MembershipLog, "contributors", lambda self, key, cohort: tuple(sorted(cohort)))


def counts_who_came_back_as_a_survivor(patch: Patch) -> None:
    def contributors(self: MembershipLog, key: tuple[int, int], cohort: Sequence[int]) -> tuple[int, ...]:
        left = set(cohort)
        for record in self.records[1:]:
            if record.first_round > key[0] and key > record.kept:
                left &= set(record.members)
        return tuple(sorted(left))

    patch.setattr(MembershipLog, "contributors", contributors)


def encodes_anew_from_the_present_residual(patch: Patch) -> None:
    attempt = LandingTransport.attempt

    def spoilt(self: LandingTransport, exchanges: Any) -> Any:
        exchanges = list(exchanges)
        for exchange in exchanges if len(self.log.records) > 1 else ():
            exchange.uploads = {client: _moved_on(upload) for client, upload in exchange.uploads.items()}
        return attempt(self, exchanges)

    patch.setattr(LandingTransport, "attempt", spoilt)


def _moved_on(upload: Upload) -> Upload:
    residual = upload.residual
    return upload if residual is None else replace(upload, residual=Residual(residual.after.clone(), residual.after))


def lets_n_fall(patch: Patch) -> None:
    decide = sites.decide

    def spoilt(generation: int, reports: Sequence[Report], *args: Any) -> Decision:
        decision = decide(generation, reports, *args)
        here = [report for report in reports if decision.log.client_of(report.site) in decision.landed]
        n = 1 + max([decision.record.kept[0], *(report.started for report in here)])
        record = replace(decision.record, first_round=n if decision.landed else 0)
        return replace(decision, record=record, log=MembershipLog((*decision.log.records[:-1], record)))

    patch.setattr(sites, "decide", spoilt)


def forgets_a_commit_once_it_is_merged(patch: Patch) -> None:
    prune = CommittedStore.prune
    patch.setattr(CommittedStore, "prune", lambda self, all_landed, merged: prune(self, (10**9, 0), merged))


def drops_messages_that_come_before_the_opening(patch: Patch) -> None:
    post = Run.post

    def spoilt(self: Run, sender: Site, generation: int, member: int, event: Callable[[Any], None]) -> None:
        receiver, carrier = self.carriers[generation, member]

        def late(_: Any) -> None:
            if receiver.membership.generation >= generation:
                event(carrier)

        post(self, sender, generation, member, late)

    patch.setattr(Run, "post", spoilt)


def releases_old_state_before_the_opening(patch: Patch) -> None:
    stage = ElasticTransport.stage

    def spoilt(self: ElasticTransport, *decided: Any) -> Any:
        shard = stage(self, *decided)
        self._shard = shard
        return shard

    patch.setattr(ElasticTransport, "stage", spoilt)


def keeps_the_newest_server_state_alone(patch: Patch) -> None:
    release = VersionedShard.release
    patch.setattr(VersionedShard, "release", lambda self, landed: release(self, (10**9, 0)))


def keeps_the_newest_backup_alone(patch: Patch) -> None:
    def take(self: Backups, block: int, server: int, label: Any, pieces: Any) -> None:
        self._pieces[block, server] = {label: list(pieces)}

    def release(self: Backups, landed: Any) -> None:
        """It has one."""

    def labels(self: Backups, generation: int) -> Any:
        held = {place: tuple(versions) for place, versions in self._pieces.items()}
        return {place: tuple((min(label[0], (0, 0)), generation) for label in of) for place, of in held.items()}

    def piece(self: Backups, block: int, server: int, label: Any) -> Any:
        return next(iter(self._pieces[block, server].values()))

    for function in (take, release, labels, piece):
        patch.setattr(Backups, function.__name__, function)


def leaves_as_soon_as_it_has_drained(patch: Patch) -> None:
    def over(self: Run) -> bool:
        for site in self.sites:
            if site.has_drained and site.is_alive and not is_over(self):
                site.has_gone_home = True
                self.kill(site, restarts=False)
        return is_over(self)

    is_over: Callable[[Run], bool] = Run.is_over.fget  # type: ignore[attr-defined,assignment]
    patch.setattr(Run, "is_over", property(over))


def lets_old_threads_write_into_residuals_that_live_on(patch: Patch) -> None:
    patch.setattr(LandingTransport, "_draft", lambda self, upload: upload)


def a_zombie_goes_on(patch: Patch) -> None:
    patch.setattr(ElasticTransport, "_begins_anew", lambda self, decision: False)
    patch.setattr(Run, "_wake", lambda self, site: self.poke(0.0))
    decided = Run._decided

    def spoilt(self: Run, attempt: Any, site: Site, decision: Decision) -> None:
        if site.actor is None or site.client not in decision.record.joiners:
            decided(self, attempt, site, decision)
            return
        actor, site.actor = site.actor, None  # so that it is not ended
        decided(self, attempt, site, decision)
        site.actor = actor

    patch.setattr(Run, "_decided", spoilt)


@dataclass(frozen=True)
class Spoilt:
    """A rule, how it is spoilt, and what the histories are about that show it."""

    rule: int
    spoil: Callable[[Patch], None]
    fixed: Mapping[str, Any]


USUAL = {"dtype": "float32", "begin": -1, "warmup": 0}
LOSSY = {**USUAL, "compression": "int8", "server": "sgd"}
PLAIN = {**USUAL, "compression": "none", "server": "sgd"}
MOMENTUM = {**USUAL, "compression": "none", "server": "nesterov"}

ALL = [
    Spoilt(2, lands_after_its_report, PLAIN),
    Spoilt(4, waits_for_lost_clients, PLAIN),
    Spoilt(4, counts_who_came_back_as_a_survivor, PLAIN),
    Spoilt(4, encodes_anew_from_the_present_residual, LOSSY),
    Spoilt(5, lets_n_fall, {**PLAIN, "K": 4, "delay": 12, "n": 3, "cohort": None, "rounds": 10}),
    Spoilt(6, forgets_a_commit_once_it_is_merged, PLAIN),
    Spoilt(7, drops_messages_that_come_before_the_opening, PLAIN),
    Spoilt(7, lets_old_threads_write_into_residuals_that_live_on, LOSSY),
    Spoilt(7, releases_old_state_before_the_opening, MOMENTUM),
    Spoilt(9, keeps_the_newest_server_state_alone, MOMENTUM),
    Spoilt(9, keeps_the_newest_backup_alone, MOMENTUM),
    Spoilt(10, leaves_as_soon_as_it_has_drained, PLAIN),
    Spoilt(10, a_zombie_goes_on, PLAIN),
]


@pytest.mark.parametrize("spoilt", ALL, ids=lambda spoilt: f"{spoilt.rule}-{spoilt.spoil.__name__}")
def test_histories_fail_once_a_rule_is_spoilt(spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt.spoil(monkeypatch)
    for seed in range(MOST):
        try:
            History(seed, **spoilt.fixed).check()
        except SEEN:
            return
        except Exception:  # may be a fault of the spoilt function
            continue
    pytest.fail(f"{MOST} histories did not notice that rule {spoilt.rule} is spoilt")
