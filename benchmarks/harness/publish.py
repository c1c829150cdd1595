"""The end of every benchmark: the result file and its picture, in results/ or, for a quick run, in results/quick/."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.pictures import draw
from benchmarks.harness.results import RESULTS, without_place, write_result

QUICK_RESULTS = RESULTS / "quick"
"""Not under version control: a quick run only shows that a benchmark runs, its numbers mean nothing."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line with ``--quick``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick",
        action="store_true",
        help="run a small part, to check that the benchmark runs; writes to results/quick/",
    )
    return made


def folder(options: argparse.Namespace) -> Path:
    """The folder for this run's results."""
    return QUICK_RESULTS if options.quick else RESULTS


def refuse_unknown(made: argparse.ArgumentParser, given: str, known: Iterable[str]) -> None:
    """End with an error of the command line where a comma-separated list names what is not known."""
    words = list(known)
    if unknown := set(given.split(",")) - set(words):
        made.error(f"{', '.join(sorted(unknown))} is not known; choose from {', '.join(words)}")


def publish(
    question: str,
    options: argparse.Namespace,
    *,
    seeds: Sequence[int],
    network: Mapping[str, Any],
    values: Mapping[str, Any],
    configuration: Mapping[str, Any] | None = None,
) -> None:
    """Write ``<question>.json`` and draw ``<question>.png``; the options are part of the configuration.

    Raises:
        SystemExit: part of a quick run has failed.
    """
    given = {name: without_place(value) if isinstance(value, str) else value for name, value in vars(options).items()}
    path = write_result(
        question,
        configuration=given | dict(configuration or {}),
        seeds=seeds,
        network=network,
        values=values,
        directory=folder(options),
    )
    draw(question, path.parent)
    messages = list(failures(values))
    if messages:
        print(f"{question}: {len(messages)} failed, the first: {messages[0].splitlines()[0]}", flush=True)
    if messages and options.quick:
        raise SystemExit(1)


def failures(values: Any) -> Iterator[str]:
    """The messages of all failed configurations in a result's values."""
    if isinstance(values, Mapping):
        if isinstance(values.get("failed"), str):
            yield values["failed"]
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from failures(value)
