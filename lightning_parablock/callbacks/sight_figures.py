"""Figures of each client, and those of all clients together: sums, maxima and minima."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.records import RoundRecord

PREFIX = "parablock/"
LOSS, DRIFT, PARTICIPATION, SAMPLES = (PREFIX + name for name in ("val_loss", "drift", "participation", "samples"))
WORST, LABEL = f"{LOSS}_worst", f"{LOSS}_label_"


@dataclass(frozen=True)
class ClientFigures:
    """The figures of one client.

    Attributes:
        client: Number of the client.
        loss: Mean validation loss of the committed model on its own rows; None if it has none, or did not validate.
        rounds: Number of rounds in which it trained.
        passed_rounds: Number of rounds merged so far, whether it took part or not.
        samples: Number of samples it has trained on.
        drift: Mean drift over the rounds since the last figures, see
            :class:`~lightning_parablock.records.RoundRecord`; None if it is known for none of them.
    """

    client: int
    loss: float | None = None
    rounds: int = 0
    passed_rounds: int = 0
    samples: int = 0
    drift: float | None = None


@dataclass(frozen=True)
class Sums:
    """Figures summed over some clients; with several clients, no figure is that of a single one.

    Attributes:
        added: Figures that are summed over clients.
        peaks: Figures whose maximum over clients is taken; a minimum is the maximum of negated figures.
    """

    added: tuple[float, ...]
    peaks: tuple[float, ...]

    @classmethod
    def of(cls, clients: Iterable[ClientFigures]) -> Sums:
        """The sums of this rank's clients; at least one client."""
        each = [_sums_of_one(client) for client in clients]
        return cls(
            tuple(math.fsum(column) for column in zip(*(one.added for one in each), strict=True)),
            tuple(max(column) for column in zip(*(one.peaks for one in each), strict=True)),
        )

    def metrics(self) -> dict[str, float]:
        """Means, worst client and spread over all clients, under their logged names."""
        n, rounds, samples, n_loss, loss, loss_squares, n_drift, drift = self.added
        passed, fewest, highest, lowest, most_drift = self.peaks
        found: dict[str, float] = {}
        if n_loss:
            mean = loss / n_loss
            spread = highest + lowest
            found |= {f"{LOSS}_mean": mean, WORST: highest, f"{LOSS}_spread": spread}
            # With an infinite loss the difference is NaN, which a maximum would skip.
            variance = loss_squares / n_loss - mean * mean if math.isfinite(loss_squares) else math.inf
            found[f"{LOSS}_std"] = math.sqrt(max(0.0, variance))
        if passed:
            found |= {f"{PARTICIPATION}_mean": rounds / n / passed, f"{PARTICIPATION}_min": -fewest / passed}
            found[f"{SAMPLES}_total"] = samples
        if n_drift:
            found |= {f"{DRIFT}_mean": drift / n_drift, f"{DRIFT}_max": most_drift}
        return found


def _sums_of_one(client: ClientFigures) -> Sums:
    loss, drift = client.loss, client.drift
    if loss is not None and math.isnan(loss):
        loss = math.inf  # whether a maximum skips NaN depends on the order of the clients
    return Sums(
        added=(
            1.0,
            client.rounds,
            client.samples,
            *((0.0, 0.0, 0.0) if loss is None else (1.0, loss, loss * loss)),
            *((0.0, 0.0) if drift is None else (1.0, drift)),
        ),
        peaks=(
            client.passed_rounds,
            -client.rounds,
            *((-math.inf, -math.inf) if loss is None else (loss, -loss)),
            -math.inf if drift is None else drift,
        ),
    )


def client_metrics(
    clients: Iterable[ClientFigures], passed_rounds: int, names: ClientNames = NO_NAMES
) -> dict[str, float]:
    """Figures of each client by their logged names."""
    found: dict[str, float] = {}
    for one in clients:
        told = {LOSS: one.loss, DRIFT: one.drift}
        if passed_rounds:
            told |= {PARTICIPATION: one.rounds / passed_rounds, SAMPLES: float(one.samples)}
        found |= {f"{name}_{names.key(one.client)}": value for name, value in told.items() if value is not None}
    return found


def label_metrics(labels: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean loss by label, of (summed loss, number of terms) by label."""
    return {f"{LABEL}{name}": total / count for name, (total, count) in sorted(labels.items()) if count}


def figures_of(
    records: Sequence[RoundRecord], losses: Mapping[int, float | None], *, told_rounds: int = 0
) -> list[ClientFigures]:
    """Figures of this rank's clients that have a record or a loss.

    Args:
        records: Finished rounds of all clients of this rank.
        losses: Own validation loss by client, None where it is not known.
        told_rounds: Rounds below this number no longer count for the drift.
    """
    passed = max((r.round for r in records), default=-1) + 1 - min((r.round for r in records), default=0)
    found: list[ClientFigures] = []
    by_client: dict[int, list[RoundRecord]] = {number: [] for number in losses}
    for record in records:
        by_client.setdefault(record.client, []).append(record)
    for number, own in sorted(by_client.items()):
        drifts = [r.drift for r in own if r.drift is not None and r.round >= told_rounds]
        found.append(
            ClientFigures(
                client=number,
                loss=losses.get(number),
                rounds=sum(r.samples > 0 for r in own),
                passed_rounds=passed,
                samples=sum(r.samples for r in own),
                drift=math.fsum(drifts) / len(drifts) if drifts else None,
            )
        )
    return found
