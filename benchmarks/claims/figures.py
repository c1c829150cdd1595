"""From the raw runs of bench_claims to one record per run, planned seconds, and the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.claims.methods import METHODS
from benchmarks.harness.planned import link_s, planned
from benchmarks.harness.rate_search import final_loss
from benchmarks.harness.sets import REPORTED_LOSS

RATE_MBIT = 100
CLOSE_PERCENT = 1.0
KEY = ("size", "data", "partition", "method")
Record = Mapping[str, Any]


def combined(answers: Sequence[Record], run_facts: Record, turns: int) -> dict[str, Any]:
    """Combine the answers of a run's clients into one record.

    Args:
        answers: Results of :func:`benchmarks.claims.job.train`, by client.
        run_facts: ``data``, ``local_steps`` and ``delay_steps`` among them.
        turns: See :class:`benchmarks.claims.methods.Method`.

    Returns:
        ``run_facts``, and ``held_out_loss``: [steps per client, loss]; ``other_loss``, the final loss of the kind that
        is not reported; ``examples`` per client; ``sent_bytes`` at the socket and ``upload_bytes`` of the round
        records, means over clients; ``drift``, the mean over rounds and clients; ``compute_s`` and ``exchange_s`` of
        each round; and ``planned_s``.
    """
    first, rounds = answers[0], _rounds(answers)
    compute_s, exchange_s = ([row[name] for row in rounds] for name in ("compute_s", "exchange_s"))
    delay_rounds = run_facts["delay_steps"] / run_facts["local_steps"]
    kind = 1 if REPORTED_LOSS[run_facts["data"]] == "token" else 2
    return {
        **run_facts,
        "held_out_loss": [[point[0] / turns, point[kind]] for point in first["held_out_loss"]],
        "other_loss": first["held_out_loss"][-1][3 - kind],
        "examples": [answer["examples"] for answer in answers],
        "sent_bytes": fmean(answer["sent_bytes"] for answer in answers),
        "received_bytes": fmean(answer["received_bytes"] for answer in answers),
        "upload_bytes": fmean(sum(row[3] for row in answer["rounds"]) for answer in answers),
        "blocks": [row["block"] for row in rounds],
        "drift": _mean_of_known(row[5] for answer in answers for row in answer["rounds"]),
        "compute_s": compute_s,
        "exchange_s": exchange_s,
        "planned_s": planned(compute_s, exchange_s, delay_rounds).drained_s,
        "block_scalars": first["block_scalars"],
        "rows_per_client": first["rows_per_client"],
        "seconds": max(answer["seconds"] for answer in answers),
    }


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rounds(answers: Iterable[Record]) -> list[dict[str, Any]]:
    """For each round: its block, C of its slowest client, and the planner's M for its busiest direction."""
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"compute_s": 0.0, "exchange_s": 0.0})
    for answer in answers:
        step = 0
        for number, block, steps, upload_bytes, download_bytes, _ in answer["rounds"]:
            row = found[number]
            cpu_s = sum(answer["step_cpu_s"].get(str(one), 0.0) for one in range(step, step + steps))
            row["block"] = block
            row["compute_s"] = round(max(row["compute_s"], cpu_s), 6)
            row["exchange_s"] = round(max(row["exchange_s"], link_s(max(upload_bytes, download_bytes), RATE_MBIT)), 6)
            step += steps
    return [found[number] for number in sorted(found)]


# --- the table --------------------------------------------------------------------------------------------------------


def table(runs: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per size, data set, partition and method with a finished run, in the order of METHODS.

    ``over_baseline_percent`` has one value per seed for which the baseline has a run, too.
    """
    groups: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    for run in runs:
        if not run["failed"]:
            groups[tuple(run[name] for name in KEY)][run["seed"]] = run
    cells = list(dict.fromkeys(key[:3] for key in groups))
    ordered = [(*cell, method) for cell in cells for method in METHODS if (*cell, method) in groups]
    return [_row(key, groups[key], groups.get((*key[:3], METHODS[key[3]].baseline), {})) for key in ordered]


def _row(key: tuple[str, ...], runs: Mapping[int, Record], baselines: Mapping[int, Record]) -> dict[str, Any]:
    losses = {seed: final_loss(run) for seed, run in runs.items()}
    both = [seed for seed in losses if seed in baselines and key[3] != METHODS[key[3]].baseline]
    over = [100 * (losses[seed] / final_loss(baselines[seed]) - 1) for seed in both]
    return dict(zip(KEY, key, strict=True)) | {
        "title": METHODS[key[3]].title,
        "loss": REPORTED_LOSS[key[1]],
        "learning_rate": next(iter(runs.values()))["learning_rate"],
        "seeds": list(losses),
        "losses": list(losses.values()),
        "mean_loss": fmean(losses.values()),
        "spread": stdev(losses.values()) if len(losses) > 1 else None,
        "over_baseline_percent": over,
        "close": abs(fmean(over)) <= CLOSE_PERCENT if over else None,
        "drift": _mean_of_known(run.get("drift") for run in runs.values()),
        "planned_s": fmean(run["planned_s"] for run in runs.values()),
        "sent_bytes": fmean(run["sent_bytes"] for run in runs.values()),
    }


def markdown(rows: Iterable[Record]) -> str:
    """The table for the terminal and the documentation, one part per size, data set and partition."""
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        parts[row["size"], row["data"], row["partition"]].append(_line(row))
    head = "| learning rate | loss, mean | spread | seeds | over its FedBCD | drift | planned s | sent, MB |"
    lines = list[str]()
    for (size, data, partition), made in parts.items():
        title = f"{data}, {partition}, {size} model: loss by {REPORTED_LOSS[data]}"
        lines += [f"| {title} {head}", f"|{' --- |' * 9}", *made, ""]
    return "\n".join(lines)


def _line(row: Record) -> str:
    over = row["over_baseline_percent"]
    cells = (
        row["title"],
        f"{row['learning_rate']:g}",
        f"{row['mean_loss']:.4f}",
        "" if row["spread"] is None else f"{row['spread']:.4f}",
        f"{len(row['losses'])}",
        f"{fmean(over):+.1f} % ({min(over):+.1f} to {max(over):+.1f})" if over else "",
        "" if row["drift"] is None else f"{row['drift']:.2f}",
        f"{row['planned_s']:.0f}",
        f"{row['sent_bytes'] / 1e6:.0f}",
    )
    return f"| {' | '.join(cells)} |"
