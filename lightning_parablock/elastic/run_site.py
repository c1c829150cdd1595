"""A site with the exchanges of a fit: what the strategy works with in an elastic run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.blocks.flat import FlatBlocks, hash_tensors
from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.arbiter import Arbiter
from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.elastic.opening import committed_at, open_elastic
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.seat import SiteOptions
from lightning_parablock.elastic.site import Site
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.elastic.view import SiteView
from lightning_parablock.errors import CallOrderError, DivergenceError, RefusedError, UnreachableError
from lightning_parablock.federation.joining import start_at
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.masking.ring import Ring
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.server.optimizers import ServerSGD
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.system.reading import reading
from lightning_parablock.transport.base import Transport

log = logging.getLogger(__name__)

_HASH_S = 20.0


class RunSite(Site, SiteView):
    """This process' site, with the exchanges of a fit.

    Args:
        options: How it takes part.
        arbiter: Says who is alive.
        host: Address at which the other sites reach this one.
        settings: The run's settings.
        record: Where the site notes the run that it takes part in.
        links: Addresses of the sites of a federation; None where sites may be anywhere.
    """

    def __init__(
        self,
        options: SiteOptions,
        arbiter: Arbiter,
        host: str,
        settings: Settings,
        record: RunRecord | None = None,
        links: PrivateLinks | None = None,
    ) -> None:
        super().__init__(options, arbiter, host, settings.ports, record, links)
        self._delay = settings.delay
        self._transport: ElasticTransport | None = None
        self._hashes: dict[int, str] = {}
        self.desk.answer("hash", self._answer_hash)

    @override
    def open_rounds(
        self,
        flat: FlatBlocks,
        settings: Settings,
        schedule: Schedule,
        device: torch.device,
        masks: MaskMaker | None = None,
    ) -> Transport:
        self._transport = open_elastic(self, flat, settings, schedule, device=device, masks=masks)
        return self._transport

    @override
    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        if self._transport is None:
            raise CallOrderError("open_rounds comes before begin_engine")
        committed = committed_at(self._transport, engine.schedule, engine.settings, round_index)
        self._compare(round_index, hash_tensors(committed))
        first_round = self.log.records[0].first_round
        start_at(engine, round_index, dict(enumerate(committed)), first_round=first_round)

    @override
    def keep_round_start(self, round_index: int, state: bytes) -> None:
        super().keep_round_start(round_index, state)
        transport = self._transport
        is_first = any(one.first_round == round_index and one.joiners for one in self.log.records[1:])
        if transport is None or not is_first:
            return
        due = max(self._delay.newest_due_at_start(round_index), -1)
        values = [transport.store.value_before(block, due)[1] for block in range(transport.store.n_blocks)]
        # Values in the store never change, so that training need not wait for the hash.
        threading.Thread(target=self._note_hash, args=(round_index, values), daemon=True).start()

    def _note_hash(self, round_index: int, values: Sequence[Tensor]) -> None:
        sha256 = hash_tensors(values)
        with self.seat.changed:
            self._hashes[round_index] = sha256
            self.seat.changed.notify_all()

    def _answer_hash(self, call: Call) -> Reply:
        with call.reading():
            round_index = int(call.said["round"])
        with self.seat.changed:
            call.until(self.seat.changed, lambda: round_index in self._hashes)
            return Reply({"sha256": self._hashes.get(round_index, "")})

    def _compare(self, round_index: int, own: str) -> None:
        """Compare W at the start of a round with that of a member that was there before.

        Raises:
            DivergenceError: they differ.
        """
        for client in (c for c in self.log.newest.members if c != self.client):
            try:
                said = self.seat.ask(client, "hash", {"round": round_index}, b"", _HASH_S).said
            except (UnreachableError, RefusedError):
                continue
            with reading(f"the answer of {self.seat.describe(client)} to 'hash'"):
                theirs = str(said["sha256"])
            if theirs and theirs != own:
                raise DivergenceError(
                    f"round {round_index}: the committed model that this site has received differs from that of "
                    f"{self.seat.describe(client)} ({own[:12]}, {theirs[:12]}): it does not take part with it; start "
                    "it again, and report this if it happens again"
                )
            if theirs:
                return
        log.warning(
            "parablock: round %d: no member could confirm the model that this site has received; compare `weights: "
            "sha256` of the sites at the end",
            round_index,
        )


def site_options(settings: Settings, name: str) -> SiteOptions:
    """How a site takes part, as its settings say; ``lighthouse`` must be set."""
    assert settings.lighthouse is not None and settings.min_clients is not None
    secure = settings.aggregation if isinstance(settings.aggregation, SecureAggregation) else None
    return SiteOptions(
        site=name,
        lighthouse=settings.lighthouse,
        min_clients=settings.min_clients,
        rejoin_timeout_s=settings.rejoin_timeout_s,
        admit_every_rounds=settings.admit_every_rounds,
        silence_s=settings.silence_s,
        topology=settings.topology,
        straggler_timeout_s=settings.straggler_timeout_s,
        has_server_state=settings.compression.is_lossy or not isinstance(settings.server_optimizer, ServerSGD),
        drops=secure is not None,
        most_members=None if secure is None else Ring(secure.bytes_per_value).most_clients,
    )
