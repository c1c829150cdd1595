"""From the raw runs of bench_frontier to the table: losses, memory, bytes, and the loss reached in some minutes.

Nothing here is timed on a link. Seconds are planned by benchmarks.harness.planned: a round's computation is its steps
times the step time of its block, and its exchange takes as long as the larger direction of its measured bytes on a link
of that rate. The step time is the median processor time of the training thread over all steps of that block and method
on one data set, so what a step takes on a core of its own. Runs are made on several days, on machines that are not
equally quick: so step times count in plain steps, one of which is timed at the end of each run, and become seconds with
the median plain step of all runs. A loss counts as reached when the committed model that was evaluated is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.frontier.methods import MAIN, METHODS, SIZES, Size
from benchmarks.frontier.targets import with_targets
from benchmarks.harness.planned import Planned, link_s, planned
from benchmarks.harness.rate_search import final_loss
from benchmarks.harness.sets import REPORTED_LOSS

RATES_MBIT = (20, 100)
MINUTES = (10, 30, 60)
Record = Mapping[str, Any]
Row = dict[str, Any]


def combined(answers: Sequence[Record], data: str) -> dict[str, Any]:
    """Combine the answers of a run's clients into one record.

    Args:
        answers: Results of :func:`benchmarks.frontier.job.train`, by client.
        data: "gsm8k" or "instruct", which decides what loss is reported.

    Returns:
        ``held_out_loss``: [steps per client, loss]; ``other_loss``, the final loss of the kind that is not reported;
        ``rounds``: block, steps, and bytes of the larger direction of the busiest client; ``step_cpu_s`` per client;
        ``plain_step_s`` and ``sent_bytes``, means over the clients; ``peak_bytes``, the largest of the clients; and
        facts.
    """
    first = answers[0]
    kind = 1 if REPORTED_LOSS[data] == "token" else 2
    by_round = zip(*(answer["rounds"] for answer in answers), strict=True)
    return {
        "held_out_loss": [[point[0], point[kind]] for point in first["held_out_loss"]],
        "other_loss": first["held_out_loss"][-1][3 - kind],
        "rounds": [[rows[0][0], rows[0][1], max(max(row[2:]) for row in rows)] for rows in by_round],
        "step_cpu_s": [answer["step_cpu_s"] for answer in answers],
        "plain_step_s": fmean(answer["plain_step_s"] for answer in answers),
        "examples": [answer["examples"] for answer in answers],
        "sent_bytes": fmean(answer["sent_bytes"] for answer in answers),
        "received_bytes": fmean(answer["received_bytes"] for answer in answers),
        "base_bytes": max(answer["base_bytes"] for answer in answers),
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        "block_scalars": first["block_scalars"],
        "seconds": max(answer["seconds"] for answer in answers),
    }


def two_best(runs: Iterable[Record]) -> list[str]:
    """The two methods of MAIN with the lowest mean final loss on GSM8K, best first."""
    losses: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if not run["failed"] and run["data"] == "gsm8k" and run["method"] in MAIN:
            losses[run["method"]].append(final_loss(run))
    return sorted(losses, key=lambda name: fmean(losses[name]))[:2]


# --- seconds ----------------------------------------------------------------------------------------------------------


def step_times(runs: Iterable[Record]) -> dict[str, float]:
    """Block -> one local step in plain steps, the median over these runs and their clients."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for seconds in run["step_cpu_s"]:
            step = 0
            for block, steps, _ in run["rounds"]:
                found[block] += [one / run["plain_step_s"] for one in seconds[step : step + steps]]
                step += steps
    return {block: median(seconds) for block, seconds in found.items()}


def plan_of(run: Record, step_s: Mapping[str, float], rate_mbit: float) -> Planned:
    """When each round of a run is over on links of a rate in Mbit/s."""
    compute_s = [steps * step_s[block] for block, steps, _ in run["rounds"]]
    exchange_s = [link_s(n_bytes, rate_mbit) for _, _, n_bytes in run["rounds"]]
    return planned(compute_s, exchange_s, run["settings"]["delay_steps"] / run["settings"]["local_steps"])


def timed_curve(run: Record, plan: Planned) -> list[tuple[float, int, float]]:
    """(seconds, steps, loss) of every committed model that was evaluated; the last one is that after the drain."""
    local_steps, points = run["settings"]["local_steps"], run["held_out_loss"]
    inside = [(plan.rounds_s[step // local_steps - 1] if step else 0.0, step, loss) for step, loss in points[:-1]]
    return [*inside, (plan.drained_s, *points[-1])]


def reached(curve: Sequence[tuple[float, int, float]], limit_s: float) -> tuple[int, float]:
    """Steps and loss of the last evaluated model that is there by then."""
    _, step, loss = max(point for point in curve if point[0] <= limit_s)
    return step, loss


# --- the table --------------------------------------------------------------------------------------------------------


def table(runs: Iterable[Record], trials: Iterable[Record], step_factor: float = 1.0) -> list[Row]:
    """One row per data set and method with a finished run, in the order of METHODS.

    Args:
        runs: Reported runs, failed ones too.
        trials: Trials of learning rates, likewise.
        step_factor: Plan as if local steps took this many times as long as measured.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    made = [run for run in runs if not run["failed"]]
    for run in made:
        groups[run["data"], run["method"]].append(run)
    plain_s = step_factor * median([run["plain_step_s"] for run in made] or [0.0])
    tried = [trial for trial in trials if not trial["failed"]]
    keys = [(data, name) for data in REPORTED_LOSS for name in METHODS if (data, name) in groups]
    by_seed = {key: sorted(groups[key], key=lambda run: run["seed"]) for key in keys}
    return with_targets([_row(*key, by_seed[key], tried, plain_s) for key in keys])


def _row(data: str, name: str, runs: list[Record], trials: list[Record], plain_s: float) -> Row:
    losses, rates = [final_loss(run) for run in runs], _tried(name, trials)
    step_s = {block: plain_s * plain_steps for block, plain_steps in step_times(runs).items()}
    steps = [(step_s[block], n) for block, n, _ in runs[0]["rounds"]]
    links = {f"{rate}mbit": _on_link(runs, step_s, rate) for rate in RATES_MBIT}
    return {
        "data": data,
        "method": name,
        "title": METHODS[name].title,
        "trains": "adapters" if METHODS[name].lora_rank else "model",
        "loss": REPORTED_LOSS[data],
        "learning_rate": runs[0]["learning_rate"],
        "final_loss_by_learning_rate": rates,
        "rate_at_edge": _at_edge(runs[0]["learning_rate"], [float(rate) for rate in rates]),
        "seeds": [run["seed"] for run in runs],
        "final_losses": losses,
        "mean_final_loss": fmean(losses),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "sent_bytes": fmean(run["sent_bytes"] for run in runs),
        "round_bytes": fmean(n_bytes for run in runs for *_, n_bytes in run["rounds"]),
        "rounds": len(runs[0]["rounds"]),
        "local_steps": runs[0]["settings"]["local_steps"],
        "step_s": sum(seconds * n for seconds, n in steps) / sum(n for _, n in steps),
        "block_step_s": step_s,
        "plain_step_s": plain_s,
        "links": links,
    }


def _tried(name: str, trials: list[Record]) -> dict[str, float]:
    of = METHODS[name].rate_of or name
    found = {trial["learning_rate"]: final_loss(trial) for trial in trials if trial["method"] == of}
    return {f"{rate:g}": found[rate] for rate in sorted(found)}


def _at_edge(chosen: float, rates: Sequence[float]) -> bool:
    """Whether the best learning rate is the smallest or largest that was tried, of several."""
    return len(rates) > 1 and chosen in (min(rates), max(rates))


def _on_link(runs: list[Record], step_s: Mapping[str, float], rate_mbit: int) -> Row:
    plans = [plan_of(run, step_s, rate_mbit) for run in runs]
    curves = [timed_curve(run, plan) for run, plan in zip(runs, plans, strict=True)]
    whole_s = fmean(plan.drained_s for plan in plans)
    return {
        "whole_run_s": whole_s,
        "round_s": whole_s / len(runs[0]["rounds"]),
        "curves": [[[round(s, 1), step, loss] for s, step, loss in curve] for curve in curves],
        "reached": {str(minutes): _reached(curves, 60.0 * minutes) for minutes in MINUTES},
    }


def _reached(curves: list[list[tuple[float, int, float]]], limit_s: float) -> Row:
    """``has_ended``: whether all runs were over by then, so that more steps could have reached less."""
    points = [reached(curve, limit_s) for curve in curves]
    losses = [loss for _, loss in points]
    return {
        "steps": [step for step, _ in points],
        "losses": losses,
        "mean_loss": fmean(losses),
        "has_ended": all(curve[-1][0] <= limit_s for curve in curves),
    }


def missing(done: Iterable[Record], size_name: str) -> dict[str, str]:
    """Method or data set -> what has not been made yet."""
    size, good = SIZES[size_name], [one for one in done if not one["failed"]]
    return {METHODS[name].title: said for name in METHODS if (said := _missing_of(name, size, good))} | (
        {} if _has_instructions(size, good) else {"instruction set": "not all runs of the two best methods"}
    )


def _missing_of(name: str, size: Size, good: list[Record]) -> str:
    made = [one for one in good if one["method"] == name and one["data"] == "gsm8k"]
    n_trials = len(METHODS[name].learning_rates[: size.rates]) - sum(one["trial_rate"] is not None for one in made)
    seeds = size.seeds if name in MAIN else size.seeds[:1]
    n_runs = len(seeds) - sum(one["trial_rate"] is None for one in made)
    parts = [f"{n} {what}" for n, what in ((n_trials, "of its trials"), (n_runs, "of its runs")) if n]
    return " and ".join(parts)


def _has_instructions(size: Size, good: list[Record]) -> bool:
    return sum(one["data"] == "instruct" for one in good) >= 2 * len(size.seeds)
