"""Opens the exchanges of a fit at a site: founders connect, and a guest gets ready to be admitted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.elastic.calendar import Calendar
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.generation import open_generation
from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.elastic.giving import Giver
from lightning_parablock.elastic.herald import Herald
from lightning_parablock.elastic.local_errors import as_ending, ends_the_site
from lightning_parablock.elastic.site import Site
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.stores import Tell, join_store, tell_by
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.keys import BEFORE_ALL
from lightning_parablock.regroup.report import Decision
from lightning_parablock.server.aggregation import Aggregator
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import Settings
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.pacing import Pacer

_CONNECT_S = 10.0
_PAUSE_S = 0.05


def open_elastic(
    site: Site,
    flat: FlatBlocks,
    settings: Settings,
    schedule: Schedule,
    *,
    device: torch.device,
    masks: MaskMaker | None = None,
) -> ElasticTransport:
    """Open the exchanges of a fit.

    A founder's are connected afterwards; collective among founders. A guest's have no generation until
    :meth:`Site.await_admission` has returned.

    Args:
        site: This site, which has entered the run.
        flat: The model's blocks, holding the founders' common starting value W.
        settings: The run's settings.
        schedule: The run's schedule.
        device: The model's device.
        masks: For secure sums: this site's side of all agreements on masks.
    """
    seat = site.seat
    initial = [flat.pack(block).to("cpu", torch.float32, copy=True) for block in range(len(flat.blocks))]
    is_lossy = settings.compression.is_lossy
    store = CommittedStore(initial, flat.as_held if is_lossy and not flat.is_exact else None)

    def as_held(block: int, first: int, values: Tensor) -> Tensor:
        return flat.as_held(block, values, first)

    is_founder = seat.membership.generation >= 0
    transport = ElasticTransport(
        flat.blocks,
        settings,
        schedule,
        store,
        client=seat.client if is_founder else -1,
        rejoin_timeout_s=seat.options.rejoin_timeout_s,
        as_held=None if flat.is_exact else as_held,
        device=device,
        check=seat.check,
    )
    pacer = Pacer(settings.upload_bps)  # one for the exchanges of all generations, for pulls and for backups
    pace = pacer.wait if settings.upload_bps else None
    herald = Herald(seat, lambda: settings.backup_share * transport.uploaded_bytes, pace)
    transport.on_landed, transport.send_backup = herald.note_landed, herald.note_backup
    transport.on_trouble = partial(_note_trouble, site)
    seat.roster = None if masks is None else frozenset(masks.member.roster.names)

    def aggregator_of(decision: Decision, server: ServerShard, tell: Tell) -> Aggregator | None:
        if masks is None:
            return None
        record = decision.record
        try:
            agreed = masks.agree(record, transport.drops(decision), seat.next_run, tell)
        except ConfigurationError as error:  # this site's own record: each generation would fail to open here
            seat.fail(error)
            raise
        sites = [record.sites[client] for client in record.order]
        hosts = Hosts(sites, [(client,) for client in record.order], record.order.index(transport.client))
        numels = [block.numel for block in flat.blocks]
        return SecureAggregator(masks.bytes_per_value, numels, hosts, agreed, server, transport.scales)

    def connect(decision: Decision, store: str, look: Callable[[], None]) -> Transport:
        look()
        staged = transport.staged
        assert staged is not None, "staging comes before connecting"
        meeting = join_store(store, limit_s)
        tell = tell_by(meeting, decision.record, seat.options.site, limit_s)
        return open_generation(
            decision.record,
            transport.client,
            meeting,
            staged.server,
            settings,
            flat.blocks,
            device=device,
            limit_s=limit_s,
            pacer=pacer,
            aggregator=aggregator_of(decision, staged.server, tell),
        )

    limit_s = max(_CONNECT_S, 2 * seat.options.silence_s)
    fetcher = Fetcher(seat, transport, connect)
    Giver(transport, pace).register(site.desk)
    site.attach(transport, fetcher)
    site.closes(lambda: herald.close(2.0))
    herald.start()
    if is_founder:
        _begin(site, transport, fetcher)
    return transport


def _note_trouble(site: Site, error: Exception) -> None:
    """An exchange has failed: for good, where no peer and no connection is to blame."""
    if ends_the_site(error):
        site.seat.fail(as_ending(error))
    else:
        site.note_trouble(error)


def _begin(site: Site, transport: ElasticTransport, fetcher: Fetcher) -> None:
    """The founders' first generation opens once all of them are set up."""
    seat = site.seat
    decision = seat.opened
    assert decision is not None, "a founder has opened the first generation"
    site.gather("the first round", b"", decision.record.first_round)
    # Where they continue from a checkpoint, each of them has W of it by now: no site has to pull anything.
    decision = replace(decision, donor=None)
    transport.stage(decision, {})
    carrier = fetcher.connect(decision, seat.store_of(min(decision.record.members)), seat.check)
    with seat.changed:
        seat.in_rounds = True
        # Another founder may have asked for a regroup already; then this generation's exchanges never begin here.
        is_sealed = seat.membership.is_sealed
        transport.open(None if is_sealed else carrier)
    if is_sealed:
        carrier.close()


def committed_at(transport: ElasticTransport, schedule: Schedule, settings: Settings, round_index: int) -> list[Tensor]:
    """W of each block at the start of a round, as every member has it; waits until what is due before it has landed.

    Args:
        transport: Of a site that has been admitted.
        schedule: The run's schedule.
        settings: The run's settings.
        round_index: The round.

    Raises:
        PeerTimeoutError: the exchanges did not land within ``straggler_timeout_s``.
    """
    store, log = transport.store, transport.log
    due = settings.delay.newest_due_at_start(round_index)
    last = max(Calendar(schedule).between(log, BEFORE_ALL, due + 1), default=BEFORE_ALL)
    wait = LimitedWait(settings.straggler_timeout_s, reports=LATE)
    while store.landed < last:
        transport.check(*last)
        if wait.is_over:
            raise PeerTimeoutError(
                f"round {last[0]} has not landed here within {wait.limit_s:g} s; raise straggler_timeout_s if a site "
                "needs longer"
            )
        wait.report(lambda: f"the commits of round {last[0]}, with which this site begins round {round_index}")
        time.sleep(_PAUSE_S)
    return [store.value_before(block, max(due, -1))[1] for block in range(store.n_blocks)]
