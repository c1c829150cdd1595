"""Files of a run, however it ended: manifest, logged metrics, and the rounds of all clients."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_parablock.callbacks.presence import Gap
from lightning_parablock.callbacks.sight_figures import DRIFT, LOSS, PARTICIPATION, PREFIX, SAMPLES
from lightning_parablock.callbacks.trace import EXPOSED, MEMBERSHIP, SUBMITTED, WAITING
from lightning_parablock.elastic.journal import FILE_NAME as JOURNAL_NAME
from lightning_parablock.elastic.journal import Line, read_lines
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.runs.folder import MANIFEST_NAME
from lightning_parablock.system.reading import MALFORMED

METRICS_NAME, TIMELINE_NAME = "metrics.csv", "timeline.json"
_SIGHT = tuple(f"{name}_" for name in (LOSS, DRIFT, PARTICIPATION, SAMPLES))


@dataclass(frozen=True)
class Point:
    """One logged value, after ``step`` optimizer steps."""

    step: int
    value: float


@dataclass
class ClientRound:
    """One client's round in the timeline; times in seconds since the run's first round began.

    Attributes:
        client: Number of the client.
        round: Number of the round.
        block: Name of the block.
        start_s: Start of the first local step.
        compute_s: Length of the computation, up to the end of the last local step.
        exchange_start_s: Time at which its delta was submitted.
        exchange_ready_s: Time at which every client had submitted its delta.
        exchange_end_s: Time at which the commit had arrived.
        exposed: Start and length of the time in which it was idle for its exchange; length 0 for none.
        waiting: The same for a slower client.
        upload_bytes: Bytes sent for the exchange, headers included.
        download_bytes: Bytes received for the exchange, headers included.
        samples: Number of samples that it trained on; None if the run did not record it.
        drift: See :class:`~lightning_parablock.records.RoundRecord`.
    """

    client: int
    round: int
    block: str
    start_s: float
    compute_s: float
    upload_bytes: int
    download_bytes: int
    exchange_start_s: float = 0.0
    exchange_ready_s: float = 0.0
    exchange_end_s: float = 0.0
    exposed: tuple[float, float] = (0.0, 0.0)
    waiting: tuple[float, float] = (0.0, 0.0)
    samples: int | None = None
    drift: float | None = None

    @property
    def exchange_s(self) -> float:
        """Seconds of its exchange, without waiting for other clients to submit."""
        return self.exchange_end_s - self.exchange_ready_s


@dataclass
class RunFiles:
    """The contents of a run folder.

    Attributes:
        folder: Path of the run's folder.
        manifest: Configuration and outcome of the run.
        metrics: Logged values by name, in order; empty if no CSV log was written.
        sight: Figures by client, over the clients and by label, by their logged names.
        rounds: Finished rounds of all clients, by round and client; empty if the run was interrupted or failed.
        membership: What the site has noted of an elastic run, oldest first; empty with a fixed membership.
        gaps: Times in which clients were no members, in seconds since the run's first round began.
    """

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    sight: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    rounds: list[ClientRound] = field(default_factory=list[ClientRound])
    membership: list[Line] = field(default_factory=list[Line])
    gaps: list[Gap] = field(default_factory=list[Gap])

    @property
    def names(self) -> ClientNames:
        """Names of the run's clients."""
        records = [line.record for line in self.membership if line.record is not None]
        if records:
            sites = records[-1].sites
            return ClientNames(tuple(name for _, name in sorted(sites.items())), len(sites), sites)
        return ClientNames(tuple(self.manifest.get("sites") or ()), self.manifest.get("clients") or 0)

    @property
    def clients_told(self) -> int:
        """Number of clients whose rounds are known, including those that never trained; at least 1."""
        result: dict[str, Any] = self.manifest.get("result") or {}
        return result.get("clients_told") or len({one.client for one in self.rounds}) or 1


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        ConfigurationError: the folder is not that of a run, or a file in it is damaged.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        raise ConfigurationError(
            f"{folder} has no {MANIFEST_NAME}: name the folder of a run, which fit prints at its end, such as "
            "runs/20260131-120000"
        )
    try:
        found = RunFiles(folder, json.loads(manifest.read_text(encoding="utf-8")))
        if (metrics := folder / METRICS_NAME).is_file():
            points = _points(metrics)
            found.metrics = {name: some for name, some in points.items() if not name.startswith(PREFIX)}
            found.sight = {name: some for name, some in points.items() if name.startswith(_SIGHT)}
        if (timeline := folder / TIMELINE_NAME).is_file():
            events = json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"]
            found.rounds, found.gaps = _rounds(events), _gaps(events)
        if (journal := folder / JOURNAL_NAME).is_file():
            lines = read_lines(journal)
            found.membership = [line for line in lines if line.run == lines[-1].run]
    except ParaBlockError:
        raise
    except (*MALFORMED, OSError) as error:
        raise ConfigurationError(f"{folder} cannot be read as a run: {type(error).__name__}: {error}") from error
    return found


def _points(path: Path) -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    points.setdefault(name, []).append(Point(int(row["step"]), float(value)))
    return points


def _rounds(events: Iterable[dict[str, Any]]) -> list[ClientRound]:
    spans = [event for event in events if event["ph"] == "X"]
    rounds: dict[tuple[int, int], ClientRound] = {}
    for event in (event for event in spans if event["cat"] == "compute"):
        args = event["args"]
        rounds[event["pid"], args["round"]] = ClientRound(
            client=event["pid"],
            round=args["round"],
            block=event["name"],
            start_s=event["ts"] / 1e6,
            compute_s=event["dur"] / 1e6,
            upload_bytes=args["upload_bytes"],
            download_bytes=args["download_bytes"],
            samples=args.get("samples"),
            drift=args.get("drift"),
        )
    for event in (event for event in spans if event["cat"] == "exchange"):
        _note_exchange(rounds[event["pid"], event["args"]["round"]], event)
    return [rounds[key] for key in sorted(rounds, key=lambda key: (key[1], key[0]))]


def _gaps(events: Iterable[dict[str, Any]]) -> list[Gap]:
    spans = [event for event in events if event.get("cat") == MEMBERSHIP]
    return [
        Gap(event["pid"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6, event["args"]["why"])
        for event in spans
    ]


def _note_exchange(one: ClientRound, event: dict[str, Any]) -> None:
    start_s, length_s = event["ts"] / 1e6, event["dur"] / 1e6
    if event["name"] == EXPOSED:
        one.exposed = (start_s, length_s)
    elif event["name"] == WAITING:
        one.waiting = (start_s, length_s)
    elif event["name"] == SUBMITTED:
        one.exchange_start_s = start_s
    else:  # in traces of earlier versions this span begins with the submission
        one.exchange_end_s = start_s + length_s
        one.exchange_ready_s = one.exchange_end_s - event["args"].get("exchange_s", length_s)
        one.exchange_start_s = one.exchange_start_s or start_s
