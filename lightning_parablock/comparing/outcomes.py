"""What each run of a comparison came to, and what each method did over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_parablock.comparing.limits import rank_steps_a_step, step_samples
from lightning_parablock.comparing.runs import PlannedRun, last_words
from lightning_parablock.report.page_figures import Clock
from lightning_parablock.runs.files import ClientRound, RunFiles, read_run
from lightning_parablock.runs.round_steps import round_steps

LOSS = "val_loss"


@dataclass(frozen=True)
class CurvePoint:
    """The held-out loss where a client had made so many steps; None for what is not known there."""

    loss: float
    steps: int
    samples: float | None
    seconds: float | None
    sent_mb: float | None


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        method: Name of the method.
        seed: Of everything.
        folder: Folder of the run.
        error: The last line of a run that failed; None for one that is finished.
        loss_before: Held-out loss before training, with the shipped model in nats per token; None where not measured.
        loss_after: The same of the committed model after the last exchange.
        samples: That a client trained on, the mean over the clients; None where neither the rounds nor the batch size
            tell.
        seconds: From the first round's start to the last exchange's end, held-out losses on the way included.
        sent_mb: Megabytes that a client sent in exchanges, the mean over the clients.
        rounds: Finished rounds.
        hidden_share: Share of the exchanges that ran behind computation, 0 to 1; None where nothing was exchanged.
        curve: Held-out losses in order.
    """

    method: str
    seed: int
    folder: Path
    error: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    samples: float | None = None
    seconds: float | None = None
    sent_mb: float | None = None
    rounds: float | None = None
    hidden_share: float | None = None
    curve: list[CurvePoint] = field(default_factory=list[CurvePoint])

    def as_dict(self) -> dict[str, Any]:
        """The raw numbers."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Spread:
    """Mean over the seeds and, from two seeds on, the standard deviation of one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class MethodRow:
    """One method over its seeds; means over those that are finished, by the names of :class:`Outcome`."""

    method: str
    seeds: list[int]
    spreads: dict[str, Spread | None]
    errors: list[str]


FIGURES = ("loss_before", "loss_after", "samples", "seconds", "sent_mb", "rounds", "hidden_share")


def outcome_of(run: PlannedRun, *, finished: bool) -> Outcome:
    """Read what the run has left.

    Raises:
        ConfigurationError: a file of a finished run is damaged.
    """
    if not finished:
        return Outcome(run.method, run.seed, run.folder, error=last_words(run))
    files = read_run(run.folder)
    result = files.manifest["result"]
    clients = files.clients_told
    each = step_samples(files.manifest["configuration"])
    figures: dict[str, Any] = {
        "loss_before": _loss(result["loss_before"]),
        "loss_after": _loss(result["loss_after"]),
        "samples": _samples(files, clients, each),
        "seconds": _seconds(files.rounds, result["fit_s"]),
        "sent_mb": result["upload_bytes"] / clients / 1e6,
        "rounds": result["rounds"],
        "hidden_share": result["hidden_share"],
    }
    return Outcome(run.method, run.seed, run.folder, **figures, curve=_curve(files, figures, each))


def rows_of(outcomes: Sequence[Outcome]) -> list[MethodRow]:
    """One row a method, in their order."""
    methods = dict.fromkeys(one.method for one in outcomes)
    return [_row(method, [one for one in outcomes if one.method == method]) for method in methods]


def _row(method: str, outcomes: Sequence[Outcome]) -> MethodRow:
    done = [one for one in outcomes if one.error is None]
    spreads = {name: _spread([getattr(one, name) for one in done]) for name in FIGURES}
    errors = [f"seed {one.seed}: {one.error}" for one in outcomes if one.error is not None]
    return MethodRow(method, [one.seed for one in done], spreads, errors)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _seconds(rounds: Sequence[ClientRound], fit_s: float) -> float:
    """Without what it takes the clients to meet; a strategy without rounds reports only the total."""
    return max((max(one.start_s + one.compute_s, one.exchange_end_s) for one in rounds), default=fit_s)


def _samples(files: RunFiles, clients: int, each: int | None) -> float | None:
    """As the rounds tell: steps in which a client had nothing left are no samples."""
    if files.rounds:
        counts = [one.samples for one in files.rounds if one.samples is not None]
        return sum(counts) / clients if len(counts) == len(files.rounds) else None
    return None if each is None else files.manifest["result"]["steps"] * each


def _loss(metrics: Mapping[str, float]) -> float | None:
    """``val_loss``, else the first held-out loss there is."""
    return metrics.get(LOSS, next((value for name, value in metrics.items() if "loss" in name), None))


def _curve(files: RunFiles, figures: Mapping[str, Any], each: int | None) -> list[CurvePoint]:
    """From before training to after the last exchange; between them what was measured on the way."""
    steps: int = files.manifest["result"]["steps"]
    longer = rank_steps_a_step(files.manifest["configuration"])
    clock = Clock(files.rounds, round_steps(files), files.clients_told) if files.rounds else None
    # Lightning counts the step after which it validates from 0, and those before and after training from 1.
    on_the_way = [(p.step + 1, p.value) for p in files.metrics.get(LOSS, []) if 0 < p.step < steps * longer - 1]
    points = [
        CurvePoint(
            loss,
            round(step / longer),
            None if each is None else step / longer * each,
            clock.seconds_of(step) if clock else None,
            clock.megabytes_of(step) if clock else None,
        )
        for step, loss in on_the_way
    ]
    if figures["loss_before"] is not None:
        points.insert(0, CurvePoint(figures["loss_before"], 0, 0.0, 0.0, 0.0))
    if figures["loss_after"] is not None:
        names = ("samples", "seconds", "sent_mb")
        points.append(CurvePoint(figures["loss_after"], steps, *(figures[name] for name in names)))
    return points
