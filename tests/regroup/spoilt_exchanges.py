"""Parts in exchanges that break one rule each; with any of them some histories must fail."""

from __future__ import annotations

from typing import Any

from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.report import Label
from tests.regroup.exchanging import Exchanges, State, parts
from tests.regroup.site import Site
from tests.regroup.toy import Values
from tests.regroup.training import encoded

EXCHANGES: dict[str, type[Exchanges]] = {}
"""By the rule that they break."""


def breaks(rule: int) -> Any:
    """Register a part in exchanges that breaks a rule."""

    def register(exchanges: type[Exchanges]) -> type[Exchanges]:
        EXCHANGES[f"rule {rule}: {exchanges.__doc__}"] = exchanges
        return exchanges

    return register


@breaks(4)
class EncodesAnew(Exchanges):
    """a delta is sent again from the residual of today"""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.sent: set[Key] = set()

    def encode(self, key: Key) -> Values:
        delta, before = self.outgoing[key]
        if key not in self.sent or self.site.training is None:
            self.sent.add(key)
            return encoded(self.task, delta, before)
        return encoded(self.task, delta, self.site.training.residual[key[1]])


@breaks(4)
class WaitsForLost(Exchanges):
    """a redone exchange waits for the clients that were lost"""

    def contributors(self, key: Key) -> tuple[int, ...]:
        return self.work(key[0])[key[1]]


@breaks(4)
class CountsReturned(Exchanges):
    """a client that was lost and came back counts in redone exchanges"""

    def contributors(self, key: Key) -> tuple[int, ...]:
        left = set(self.work(key[0])[key[1]])
        for record in self.log.records[1:]:
            if record.first_round > key[0] and key > record.kept:
                left &= set(record.members)
        return tuple(sorted(left))


@breaks(5)
class OldShards(Exchanges):
    """redone exchanges of rounds below n keep their servers"""

    def layout_of(self, key: Key) -> dict[int, slice]:
        record = next(one for one in reversed(self.log.records) if one.first_round <= key[0])
        return {server: part for server, part in parts(self.task, record).items() if server in self.site.peers}


@breaks(6)
class ForgetsMerged(Exchanges):
    """a commit is forgotten when it is merged here"""

    def release(self) -> None:
        super().release()
        for key in [key for key in self.whole if key[0] <= self.site.merged]:
            del self.whole[key]


@breaks(6)
class ForgetsSent(Exchanges):
    """a delta is forgotten when it is sent"""

    def upload(self, key: Key) -> None:
        super().upload(key)
        if self.site.accepts(self.log.generation):
            del self.outgoing[key]


@breaks(6)
class ForgetsStateBefore(Exchanges):
    """server state before an exchange is forgotten when it is served"""

    def serve(self) -> None:
        super().serve()
        for versions in self.served.values():
            del versions[:-1]


@breaks(9)
class OneBackup(Exchanges):
    """a holder keeps the newest backup only, and it is used whatever was kept"""

    def on_backup(self, server: int, block: int, label: Label, state: State) -> None:
        self.backups[block, server].clear()
        super().on_backup(server, block, label, state)


@breaks(10)
class CountsLeavers(Exchanges):
    """a leaver's deltas count in redone exchanges"""

    def contributors(self, key: Key) -> tuple[int, ...]:
        left = set(self.work(key[0])[key[1]])
        for before, record in zip(self.log.records, self.log.records[1:], strict=False):
            if record.first_round > key[0] and key > record.kept:
                leavers = {client for client, why in record.gone.items() if why == "left"} & set(before.members)
                left &= (set(record.members) - set(record.joiners)) | leavers
        return tuple(sorted(left))
