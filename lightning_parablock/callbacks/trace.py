"""Finished rounds as a Chrome trace, to be opened in chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning_parablock.callbacks.presence import Gap
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.records import RoundRecord

Event = dict[str, Any]
Span = tuple[float, float]
"""Start and length in seconds."""

THREADS = ("compute", "exchange")
EXPOSED, WAITING = "exposed", "waiting for a slower client"
"""Names of the spans in which a client was idle."""
SUBMITTED = "submitted, other clients not yet"
"""Name of the span before an exchange: the delta is ready, but other clients have not submitted theirs."""
GAP, MEMBERSHIP = "no member", "membership"
"""Name and category of the spans in which a client of an elastic run was no member."""
_MICROSECONDS = 1e6


def chrome_trace(
    records: Iterable[RoundRecord], names: ClientNames = NO_NAMES, gaps: Sequence[Gap] = ()
) -> dict[str, Any]:
    """The records as a trace: one process per client with the threads "compute" and "exchange"; time 0 is round 0's.

    Args:
        records: Finished rounds of any clients.
        names: Names of the clients.
        gaps: Times in which clients of an elastic run were no members, as spans of the thread "compute".
    """
    ordered = sorted(records, key=lambda record: (record.client, record.round))
    origin_s = min((record.start_s for record in ordered), default=0.0)
    clients = dict.fromkeys(sorted({*(record.client for record in ordered), *(gap.client for gap in gaps)}))
    labels = [event for client in clients for event in _names(client, names.label(client))]
    spans = [event for r in ordered for event in _events(r, origin_s)] + [_gap(gap, origin_s) for gap in gaps]
    return {"traceEvents": labels + spans, "displayTimeUnit": "ms"}


def submitted_span(record: RoundRecord) -> Span:
    """Time in which the client's delta was ready, but other clients had not submitted theirs."""
    return record.exchange_start_s, record.exchange_ready_s - record.exchange_start_s


def exchange_span(record: RoundRecord) -> Span:
    """Time from the last client's submission until the commit arrived."""
    return record.exchange_ready_s, record.exchange_end_s - record.exchange_ready_s


def exposed_span(record: RoundRecord) -> Span:
    """Time in which the client was idle for the exchange, up to the arrival of the commit."""
    return record.exchange_end_s - record.exposed_s, record.exposed_s


def peer_span(record: RoundRecord) -> Span:
    """Time in which the client was idle for a slower one, up to the last client's submission."""
    return record.exchange_ready_s - record.wait_peer_s, record.wait_peer_s


def _names(client: int, label: str) -> list[Event]:
    process = {"name": "process_name", "ph": "M", "pid": client, "args": {"name": label}}
    return [process] + [
        {"name": "thread_name", "ph": "M", "pid": client, "tid": tid, "args": {"name": name}}
        for tid, name in enumerate(THREADS)
    ]


def _events(record: RoundRecord, origin_s: float) -> list[Event]:
    facts = {
        "round": record.round,
        "exchange_s": record.exchange_s,
        "exposed_s": record.exposed_s,
        "wait_peer_s": record.wait_peer_s,
        "upload_bytes": record.upload_bytes,
        "download_bytes": record.download_bytes,
        "samples": record.samples,
        "drift": record.drift,
        "nonfinite": record.nonfinite,
        **({"dropped": True} if record.dropped else {}),
    }
    spans = [
        (record.block, 0, (record.start_s, record.end_s - record.start_s), facts),
        (record.block, 1, exchange_span(record), facts),
    ]
    if submitted_span(record)[1] > 0:
        spans.append((SUBMITTED, 1, submitted_span(record), {"round": record.round}))
    if record.exposed_s > 0:
        spans.append((EXPOSED, 1, exposed_span(record), {"round": record.round}))
    if record.wait_peer_s > 0:
        spans.append((WAITING, 1, peer_span(record), {"round": record.round}))
    return [_event(name, record.client, tid, span, origin_s, args) for name, tid, span, args in spans]


def _gap(gap: Gap, origin_s: float) -> Event:
    start_s = max(gap.start_s, origin_s)  # of a run that continues, or of sites that met long before the first round
    event = _event(GAP, gap.client, 0, (start_s, gap.end_s - start_s), origin_s, {"why": gap.why})
    return {**event, "cat": MEMBERSHIP}


def _event(name: str, client: int, thread: int, span: Span, origin_s: float, args: dict[str, Any]) -> Event:
    start_s, length_s = span
    return {
        "name": name,
        "cat": THREADS[thread],
        "ph": "X",
        "pid": client,
        "tid": thread,
        "ts": (start_s - origin_s) * _MICROSECONDS,
        "dur": max(0.0, length_s) * _MICROSECONDS,
        "args": args,
    }
