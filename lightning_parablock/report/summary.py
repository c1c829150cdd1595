"""Summary of a run, and the table at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from lightning_parablock.callbacks.sight_figures import WORST
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.records import RoundRecord
from lightning_parablock.system.units import readable_bytes, readable_number, readable_s


@dataclass(frozen=True)
class Here:
    """Figures of this rank's clients.

    Attributes:
        name: Name of the clients, for people: ``site a``, ``client 0``, ``the 4 clients here``.
        upload_bytes: Bytes sent by them, message headers included.
        download_bytes: Bytes received by them, message headers included.
        exposed_s: Seconds in which this rank was idle for an exchange.
        wait_peer_s: Seconds in which this rank was idle for a slower client.
    """

    name: str
    upload_bytes: int
    download_bytes: int
    exposed_s: float
    wait_peer_s: float

    @classmethod
    def of(cls, strategy: Any, records: Iterable[RoundRecord]) -> Here:
        """Figures of this rank's clients among the records of any clients; without clients, of the rank itself."""
        clients: Sequence[int] = getattr(strategy, "hosted_clients", (0,))
        own = [record for record in records if record.client in clients]
        names = ClientNames.of(strategy)
        name = names.label(clients[0]) if len(clients) == 1 else f"the {len(clients)} clients here"
        return cls(
            name=f"site {strategy.site_names[strategy.global_rank]}" if names.sites else name,
            upload_bytes=sum(record.upload_bytes for record in own),
            download_bytes=sum(record.download_bytes for record in own),
            exposed_s=math.fsum(record.exposed_s for record in own),
            wait_peer_s=math.fsum(record.wait_peer_s for record in own),
        )


@dataclass(frozen=True)
class Summary:
    """Figures of a finished run.

    Attributes:
        loss_before: Held-out metrics before training, by name; empty if none were measured.
        loss_after: The same after training.
        rounds: Number of finished rounds of a client.
        steps: Optimizer steps of a client in these rounds, the mean over the clients with known figures.
        clients: Number of clients.
        clients_told: Number of clients whose bytes, seconds and steps are known: all, or those of the first rank.
        upload_bytes: Bytes sent by these clients together, message headers included.
        download_bytes: Bytes received by these clients together, message headers included.
        exchange_s: Seconds of exchange, summed over these clients.
        exposed_s: Part of ``exchange_s`` in which a client was idle, summed over these clients.
        wait_peer_s: Seconds in which a client was idle for a slower one, summed over these clients.
        fit_s: Seconds of training.
        nonfinite: Number of rounds of these clients left out of the mean because their delta was not finite.
        dropped: Number of rounds of these clients that count for nothing, since the members changed meanwhile.
        here: Figures of this rank's clients; None if they are not known.
    """

    loss_before: dict[str, float]
    loss_after: dict[str, float]
    rounds: int
    steps: int
    clients: int
    clients_told: int
    upload_bytes: int
    download_bytes: int
    exchange_s: float
    exposed_s: float
    wait_peer_s: float
    fit_s: float
    nonfinite: int = 0
    dropped: int = 0
    here: Here | None = None

    @property
    def hidden_share(self) -> float | None:
        """Share of the exchange that ran behind computation, 0 to 1; None if nothing was exchanged."""
        if self.exchange_s <= 0:
            return None
        return max(0.0, 1 - self.exposed_s / self.exchange_s)

    def as_dict(self) -> dict[str, Any]:
        """Figures for the manifest."""
        figures = {name: value for name, value in asdict(self).items() if name != "dropped" or value}
        return {**figures, "hidden_share": self.hidden_share}


def summarise(
    records: Sequence[RoundRecord],
    before: Mapping[str, float],
    after: Mapping[str, float],
    fit_s: float,
    *,
    clients: int,
    clients_told: int | None = None,
    here: Here | None = None,
) -> Summary:
    """Sum the rounds of all clients, or of those that are known."""
    told = clients if clients_told is None else clients_told
    return Summary(
        loss_before=dict(before),
        loss_after=dict(after),
        rounds=len({record.round for record in records}),
        steps=sum(record.steps for record in records) // told,
        clients=clients,
        clients_told=told,
        upload_bytes=sum(record.upload_bytes for record in records),
        download_bytes=sum(record.download_bytes for record in records),
        exchange_s=math.fsum(record.exchange_s for record in records),
        exposed_s=math.fsum(record.exposed_s for record in records),
        wait_peer_s=math.fsum(record.wait_peer_s for record in records),
        fit_s=fit_s,
        nonfinite=sum(record.nonfinite for record in records),
        dropped=sum(record.dropped for record in records),
        here=here,
    )


def summary_table(summary: Summary) -> Table:
    """Table printed at the end of fit."""
    table = Table(title="result", title_justify="left", title_style="", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    for name in summary.loss_after:
        before = summary.loss_before.get(name)
        table.add_row(f"held-out {held_out_words(name)}", before_and_after(before, summary.loss_after[name]))
    clients = f"{summary.clients} client{'' if summary.clients == 1 else 's'}"
    table.add_row("training", f"{summary.fit_s:.0f} s, {summary.rounds} rounds, {clients}")
    told = summary.clients_told
    whose = "all clients" if told == summary.clients else "this client" if told == 1 else f"the {told} clients here"
    here = summary.here if told == summary.clients > 1 else None
    summed = f" summed over {whose}" if told > 1 else ""

    def row(name: str, text: str, own: str) -> None:
        table.add_row(name, text + (f" ({here.name}: {own})" if here is not None else ""))

    if summary.nonfinite:
        n, s = summary.nonfinite, "" if summary.nonfinite == 1 else "s"
        table.add_row("left out of the mean", f"{n} round{s} of {whose}: NaN or infinity in the delta")
    if summary.dropped:
        n, s = summary.dropped, "" if summary.dropped == 1 else "s"
        table.add_row("dropped", f"{n} round{s} of {whose}: sites came or went before the secure sum was complete")
    own = here or Here("", 0, 0, 0.0, 0.0)
    row("sent", f"{readable_bytes(summary.upload_bytes)} by {whose}", readable_bytes(own.upload_bytes))
    row("received", f"{readable_bytes(summary.download_bytes)} by {whose}", readable_bytes(own.download_bytes))
    if summary.hidden_share is not None:
        table.add_row(
            "exchange hidden", f"{100 * summary.hidden_share:.1f} % of {readable_s(summary.exchange_s)}{summed}"
        )
        row("stood still for the exchange", readable_s(summary.exposed_s) + summed, readable_s(own.exposed_s))
    row("stood still for slower clients", readable_s(summary.wait_peer_s) + summed, readable_s(own.wait_peer_s))
    return table


def results_table(results: Sequence[Mapping[str, float]]) -> Table:
    """Table of a validation or a test: one row per metric of each loader."""
    table = Table(title="result", title_justify="left", title_style="", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (item for loader in results for item in loader.items()):
        table.add_row(name, readable_number(float(value)))
    return table


def held_out_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a validation that are shown in the table: losses and perplexities."""
    return {name: float(value) for name, value in metrics.items() if "loss" in name or "perplexity" in name}


def before_and_after(before: float | None, after: float) -> str:
    """Text of a held-out metric in table and page; without the first value if none was measured."""
    was = "" if before is None else f"{readable_number(before)} before, "
    return f"{was}{readable_number(after)} after"


def held_out_words(name: str) -> str:
    """The name of a held-out metric in words, for the table."""
    if name == WORST:
        return "loss of the worst client"
    return name.removeprefix("val_").removeprefix("val/").replace("_", " ")
