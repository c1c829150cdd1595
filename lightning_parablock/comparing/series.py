"""A comparison from its options to its table: plan every run, run what is missing, and write what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from filelock import FileLock, Timeout

from lightning_parablock.comparing.limits import Equal, Limit
from lightning_parablock.comparing.methods import Method, methods_of, seeds_of
from lightning_parablock.comparing.outcomes import Outcome, outcome_of, rows_of
from lightning_parablock.comparing.picture import draw_losses
from lightning_parablock.comparing.runs import PlannedRun, execute, forget, is_finished, manifest_of, planned
from lightning_parablock.comparing.tables import NAME, screen_table, write_tables
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.report.console import console
from lightning_parablock.system.exit_codes import INTERRUPTED
from lightning_parablock.system.units import readable_number


@dataclass(frozen=True)
class Series:
    """The options of the command; see its help."""

    methods: str
    equal: Equal
    budget: str | None
    seeds: str | None
    points: int
    out: Path
    overwrite: bool
    words: tuple[str, ...]


class ReadConfiguration(Protocol):
    """Resolves a command line; a mistake ends the program as it would end that command."""

    def __call__(self, args: Sequence[str], /) -> dict[str, Any]:
        """The configuration with every default, as the run's manifest would contain it."""
        ...


def compare(series: Series, read_configuration: ReadConfiguration) -> None:
    """Run and write everything.

    Args:
        series: The options.
        read_configuration: Resolves a command line of ``fit``.

    Raises:
        ConfigurationError: before anything is trained.
        ParaBlockError: a run failed, or another compare writes to the folder.
        SystemExit: Ctrl-C or SIGTERM; the run that was interrupted has ended by then.
    """
    plans = plan(series, read_configuration)
    series.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(series.out / ".lock", timeout=0):
            _run_all(series, plans)
    except Timeout as error:
        raise ParaBlockError(
            f"another compare is writing to {series.out}; wait for it, or name another --out"
        ) from error


def plan(series: Series, read_configuration: ReadConfiguration) -> list[PlannedRun]:
    """Every run, method by method, each configuration checked.

    Args:
        series: The options.
        read_configuration: Resolves a command line of ``fit``.

    Raises:
        ConfigurationError: an option is wrong, or a finished run in the folder is of another configuration.
    """
    limit = Limit.of(series.equal, series.budget, series.points)
    methods = methods_of(series.methods)
    seeds = None if series.seeds is None else seeds_of(series.seeds)
    runs = [run for method in methods for run in _runs_of(series, method, limit, seeds, read_configuration)]
    for run in () if series.overwrite else runs:
        is_finished(run)
    return runs


def _runs_of(
    series: Series, method: Method, limit: Limit, seeds: Sequence[int] | None, read: ReadConfiguration
) -> list[PlannedRun]:
    words = [*series.words, *method.words]
    first = read(["fit", *words])
    _refuse_clients(first["trainer"])
    words = [*words, *limit.words(first)]
    final = read(["fit", *words])
    return [planned(method.name, seed, words, final, series.out) for seed in seeds or [_own_seed(final)]]


def _own_seed(configuration: Mapping[str, Any]) -> int:
    seed = configuration["seed_everything"]
    if isinstance(seed, bool):
        raise ConfigurationError("a comparison needs a seed that is known: give --seeds 0, or seed_everything a number")
    return seed


def _refuse_clients(trainer: Mapping[str, Any]) -> None:
    if trainer.get("num_nodes", 1) > 1:
        raise ConfigurationError("compare starts clients on this machine alone; set trainer.num_nodes to 1")
    if trainer.get("devices") == "auto" and torch.cuda.device_count() < 2:
        raise ConfigurationError(
            "how many clients? give --trainer.devices 2; auto would be one, which exchanges nothing"
        )


def _run_all(series: Series, plans: Sequence[PlannedRun]) -> None:
    what = _what(series)
    outcomes: list[Outcome] = []
    for number, run in enumerate(plans, start=1):
        title = f"[{number}/{len(plans)}] {run.method}, seed {run.seed}"
        kept = not series.overwrite and is_finished(run)
        if not kept:
            print(f"{title}: running; it prints to {run.log}", flush=True)
            forget(run)
            try:
                execute(run)
            except (KeyboardInterrupt, SystemExit) as error:
                _leave(len(outcomes), error)
        outcomes.append(outcome_of(run, finished=manifest_of(run.folder).get("state") == "finished"))
        print(f"{title}: {'kept: ' if kept else ''}{_said(outcomes[-1])}", flush=True)
        _write(series, what, outcomes)
    console().print(screen_table(what, rows_of(outcomes)))
    print(f"results: {series.out / NAME}.md, .csv, .json, .png")
    failed = [one for one in outcomes if one.error is not None]
    if failed:
        raise ParaBlockError(f"{len(failed)} of {len(outcomes)} runs failed; the same command runs them again")


def _write(series: Series, what: str, outcomes: Sequence[Outcome]) -> None:
    write_tables(series.out, what, outcomes, rows_of(outcomes))
    draw_losses(outcomes, series.out / f"{NAME}.png")


def _leave(n_done: int, error: BaseException) -> NoReturn:
    print(f"interrupted; {n_done} runs are done, and the same command continues from there", flush=True)
    raise SystemExit(error.code if isinstance(error, SystemExit) else INTERRUPTED) from error


def _what(series: Series) -> str:
    return f"equal {series.equal}" + (f", {series.budget} each" if series.budget is not None else "")


def _said(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    assert outcome.seconds is not None and outcome.sent_mb is not None
    loss = "" if outcome.loss_after is None else f"held-out loss {readable_number(outcome.loss_after)}, "
    return f"{loss}{outcome.seconds:.0f} s of training, {outcome.sent_mb:.2f} MB sent per client"
