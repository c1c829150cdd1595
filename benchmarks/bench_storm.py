"""Storm: what do lost, stopped, cut-off and returning sites cost a run that continues without a restart?

Every site is a process on a host of its own with a shaped link. Computation is a timed sleep; the exchanges are real.
Faults are drawn by a seed: SIGKILL with a restart some seconds later, SIGSTOP and SIGCONT, a cut link, shorter and
longer than the silence limit. A process that ends by itself is started again. The same schedule meets this package's
elastic mode and torchft's streaming DiLoCo; of both there is a shorter run without faults. ``cost`` compares elastic
with fixed membership where nothing happens, in alternating pairs of two sites with a core each. Every run is saved to
results/storm.json immediately; a second start makes the runs that are missing or have failed.

    python -m benchmarks.bench_storm
    python -m benchmarks.bench_storm --sites 8 --minutes 12 --faults 24 --runs parablock_calm,parablock
    python -m benchmarks.bench_storm --minutes 12 --faults 6 --label "a fault every 2 minutes" --runs parablock,torchft
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.publish import folder, parser, publish, refuse_unknown
from benchmarks.harness.results import git_state, read_result
from benchmarks.harness.workers import Workers, attempt
from benchmarks.storm.cost import measure
from benchmarks.storm.figures import commits_of, figures, kept
from benchmarks.storm.launch import System, Weather, storm
from benchmarks.storm.raw import Raw, packed, unpacked
from benchmarks.storm.schedule import Fault, draw
from benchmarks.storm.task import Job

QUESTION = "storm"
RUNS = ("parablock_calm", "torchft_calm", "parablock", "torchft", "cost")
COST = {"silence_s": 2.0, "local_steps": 8}
COST_SITES = 2
"""As many as most machines have cores: sites that share one vary by more than the cost."""
State = dict[str, Any]


def main() -> None:
    """Make the missing runs; the result is written after each."""
    options = _options()
    path = folder(options) / f"{QUESTION}.json"
    state: State = read_result(path)["values"] if path.exists() and not options.again else {"runs": {}, "cost": {}}
    faults = draw(options.sites, 60 * options.minutes, options.faults, options.seed)
    for name in options.runs.split(","):
        if name == "cost":
            _keep_cost(options, state)
        else:
            _keep(options, state, name, faults)
        _compare(state)
        _publish(options, state)


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--sites", type=int, default=4, help="number of sites")
    made.add_argument("--minutes", type=float, default=30.0, help="length of the storm of this package")
    made.add_argument("--peer-minutes", type=float, default=12.0, help="length of torchft's, the beginning of the same")
    made.add_argument("--calm-minutes", type=float, default=4.0, help="length of the runs without faults")
    made.add_argument("--faults", type=int, default=60, help="faults in all of --minutes")
    made.add_argument("--seed", type=int, default=0, help="seed of the faults")
    made.add_argument("--rate-mbit", type=float, default=100.0, help="rate of every link, both directions")
    made.add_argument("--runs", default=",".join(RUNS), help=f"comma-separated list of {', '.join(RUNS)}")
    made.add_argument("--pairs", type=int, default=5, help="pairs of runs for the cost")
    made.add_argument("--rounds", type=int, default=24, help="rounds of each of these")
    made.add_argument("--label", default="", help="added to the names of the runs of a further schedule")
    made.add_argument("--again", action="store_true", help="forget the runs that there are")
    made.add_argument("--logs", default=None, help="folder in which the sites' logs are kept")
    options = made.parse_args()
    if options.quick:
        options.minutes, options.peer_minutes, options.calm_minutes, options.faults = 2.0, 2.0, 0.5, 4
        options.pairs, options.rounds, options.again = 1, 6, True
    refuse_unknown(made, options.runs, RUNS)
    return options


def _keep(options: argparse.Namespace, state: State, name: str, faults: list[Fault]) -> None:
    key = f"{name}, {options.sites} sites" + (f", {options.label}" if options.label else "")
    if state["runs"].get(key, {"failed": ""})["failed"] is not None:
        state["runs"][key] = attempt(_run, options, name, faults)


def _run(options: argparse.Namespace, name: str, faults: list[Fault]) -> dict[str, Any]:
    system: System = "torchft" if name.startswith("torchft") else "parablock"
    minutes = options.peer_minutes if system == "torchft" else options.minutes
    if name.endswith("_calm"):
        minutes, faults = options.calm_minutes, []
    job = Job(site=0, sites=options.sites, min_sites=max(2, options.sites // 2), lighthouse="", folder="")
    meets = Weather(minutes, [fault for fault in faults if fault.at_s < 60 * minutes], options.rate_mbit)
    logs = None if options.logs is None else Path(options.logs, f"{name}-{options.sites}{options.label}")
    raw = storm(system, job, meets, logs)
    found = figures(raw)
    print(f"{name}, {options.sites} sites: {_said(found)}", flush=True)
    kept_raw = raw | {"traces": packed(raw["traces"])}
    asked = {"sites": options.sites, "min_sites": job.min_sites, "minutes": minutes, "faults": len(meets.faults)}
    asked |= {"seed": options.seed, "rate_mbit_s": options.rate_mbit}
    return {
        "git": git_state(),
        "asked": asked,
        "figures": found,
        "committed_s": _committed_s(raw),
        "raw": kept_raw,
    }


def _committed_s(raw: Raw) -> list[float]:
    firsts = sorted(min(by_site.values()) for by_site in commits_of(raw).values())
    return [round(at_s - raw["began_s"], 3) for at_s in firsts]


def _said(found: dict[str, Any]) -> str:
    of = {"rounds_per_s": found["rounds_per_s"], "contributions_per_s": found["contributions_per_s"]}
    if found["faults"]:
        of["median lost_s"] = median(row["lost_s"] for row in found["faults"] if row["lost_s"] is not None)
        of["median gap_s"] = median(row["gap_s"] for row in found["faults"])
    if found["back_s"]:
        of["median back_s"] = median(row["commit_s"] for row in found["back_s"])
    bad = ("hangs", "divergences", "lost_rounds", "disagreements", "ended_by_themselves")
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in of.items())
    return f"{found['rounds']} rounds, {numbers}, " + ", ".join(f"{name} {found[name]}" for name in bad)


def _keep_cost(options: argparse.Namespace, state: State) -> None:
    if state["cost"].get("failed", "") is None:
        return
    job = Job(0, COST_SITES, COST_SITES, "", "")
    model = {"kind": "sleep", "step_s": job.step_s, "n_blocks": job.n_blocks, "block_scalars": job.block_scalars}
    with Workers(COST_SITES) as workers:
        plan = {"model": model, "rounds": options.rounds, **COST}
        state["cost"] = attempt(measure, workers, plan, options.pairs, options.rate_mbit)
    print("cost, elastic over fixed:", state["cost"].get("ratios"), flush=True)


def _compare(state: State) -> None:
    """Of each storm: its seconds per fault against the calm round, and the share of the throughput that is kept."""
    for key, run in state["runs"].items():
        name, sites = key.split(", ")[:2]
        calm = state["runs"].get(f"{name}_calm, {sites}", {"failed": "missing"})
        if run["failed"] is None and calm["failed"] is None:
            raw = run["raw"] | {"traces": unpacked(run["raw"]["traces"])}
            run["figures"] = figures(raw, calm["figures"]["round_s"])
            run["kept"] = kept(run["figures"], calm["figures"])
            print(f"{key}: kept {run['kept']}", flush=True)


def _publish(options: argparse.Namespace, state: State) -> None:
    job = Job(0, options.sites, 0, "", "")
    size = ("silence_s", "local_steps", "step_s", "n_blocks", "block_scalars")
    publish(
        QUESTION,
        options,
        configuration={"computation": "timed sleeps", **{name: getattr(job, name) for name in size}},
        seeds=[options.seed],
        network={"rate_mbit_s": options.rate_mbit, "shaped": "both directions of every host"},
        values=state,
    )


if __name__ == "__main__":
    main()
