"""Workers on hosts: job after job in one process, and fresh processes after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.workers import RunFailedError, Workers, attempt

LIMIT_S = 60.0
HERE = "tests.network.test_workers"
PROCESS = uuid.uuid4().hex


def who(plan: dict[str, Any]) -> dict[str, Any]:
    return {"rank": os.environ["RANK"], "process": PROCESS, "colour": os.environ["COLOUR"], "plan": plan}


def fail(plan: dict[str, Any]) -> None:
    if os.environ["RANK"] == str(plan["rank"]):
        raise ValueError("no such thing")
    time.sleep(LIMIT_S)


def end(plan: dict[str, Any]) -> None:
    os._exit(int(os.environ["RANK"]) * 3)


@pytest.mark.parametrize("linked", [True, False])
def test_jobs_share_processes_until_one_fails(linked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.workers.AFTER_A_FAILURE_S", 0.1)
    with Workers(2, linked=linked, env={"COLOUR": "blue"}) as workers:
        first = workers.run(f"{HERE}:who", {"n": 1}, rate_mbit=100.0 if linked else None, limit_s=LIMIT_S)
        assert [answer["colour"] for answer in first] == ["blue", "blue"]
        second = workers.run(f"{HERE}:who", {"n": 2}, rate_mbit=None, limit_s=LIMIT_S)
        assert [answer["rank"] for answer in first] == ["0", "1"]
        assert [answer["process"] for answer in first] == [answer["process"] for answer in second]
        assert second[0]["plan"] == {"n": 2}
        with pytest.raises(RunFailedError, match=r"^host 1: ValueError: no such thing\n"):
            workers.run(f"{HERE}:fail", {"rank": 1}, rate_mbit=None, limit_s=LIMIT_S)
        third = workers.run(f"{HERE}:who", {}, rate_mbit=None, limit_s=LIMIT_S)
        assert {answer["process"] for answer in third}.isdisjoint(answer["process"] for answer in first)


def test_processes_of_this_machine_have_no_links_to_shape() -> None:
    with Workers(1, linked=False) as workers, pytest.raises(RunFailedError, match="no link of its own"):
        workers.run(f"{HERE}:who", {}, rate_mbit=10.0, limit_s=LIMIT_S)


def test_a_process_that_ends_and_one_that_never_does_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.workers.AFTER_A_FAILURE_S", 0.1)
    with Workers(2) as workers:
        found = attempt(workers.first_answer, f"{HERE}:end", {}, limit_s=LIMIT_S)
        assert found.keys() == {"failed"}
        assert found["failed"].startswith(("host 0 ended with 0", "host 1 ended with 3"))
        with pytest.raises(RunFailedError, match=r"not finished after 0\.5 s"):
            workers.run(f"{HERE}:fail", {"rank": 5}, rate_mbit=None, limit_s=0.5)


def show_pid(plan: dict[str, Any]) -> None:
    Path(plan["folder"], os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(LIMIT_S)


def test_workers_in_the_middle_of_a_job_end_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from benchmarks.harness.workers import Workers
with Workers(2, linked=False) as workers:
    workers.run({HERE + ":show_pid"!r}, {{"folder": {str(tmp_path)!r}}}, rate_mbit=None)
"""
    starter = subprocess.Popen([sys.executable, "-c", code])
    files = [tmp_path / "0", tmp_path / "1"]
    _wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    starter.kill()
    starter.wait(LIMIT_S)
    _wait_until(lambda: not any(_is_alive(int(file.read_text())) for file in files))


def _wait_until(true: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LIMIT_S / 2  # well before the job itself is over
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    """Whether the process runs; a dead one whom nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_succeeds_says_so() -> None:
    assert attempt(lambda: {"value": 1}) == {"failed": None, "value": 1}
