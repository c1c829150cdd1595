"""Benchmarks find pictures and jobs by name, so a moved file would be noticed only when they run."""

from __future__ import annotations

import importlib
import re

import pytest

from benchmarks.harness.pictures import QUESTIONS
from benchmarks.harness.results import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
JOB = re.compile(r'"(benchmarks\.[a-z0-9_.]+):([a-z_]+)"')
JOBS = sorted({match for path in BENCHMARKS.rglob("*.py") for match in JOB.findall(path.read_text())})


def test_every_benchmark_has_a_folder_with_a_picture() -> None:
    entries = sorted(path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py"))
    assert entries == QUESTIONS
    assert all(callable(importlib.import_module(f"benchmarks.{question}.picture").draw) for question in QUESTIONS)


@pytest.mark.parametrize(("module", "name"), JOBS)
def test_every_job_is_where_its_name_says(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


def test_jobs_are_found_in_the_sources() -> None:
    assert ("benchmarks.harness.fits", "fit") in JOBS and len(JOBS) >= 8
