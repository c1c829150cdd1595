"""A process runs its own command again in its place, or says why it cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_parablock.system import again
from tests.support.launch import ROOT

_PROGRAM = """
import os, socket, sys
from lightning_parablock.system.again import run_again
if os.environ.get("AGAIN"):
    kept = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
    print("again", os.getpid(), sys.argv[1:], len(kept) - 1, os.getcwd())
else:
    os.environ["AGAIN"] = "1"
    listening = socket.socket()
    listening.set_inheritable(True)
    print("first", os.getpid(), flush=True)
    os.chdir("/")
    run_again("a reason")
"""


def test_the_same_command_runs_in_the_same_process_and_holds_nothing_open(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, program.name, "--word", "two words"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    pid = first.split()[1]
    assert second == f"again {pid} ['--word', 'two words'] 0 {tmp_path}"
    assert "a reason; running the same command again:" in done.stderr


@pytest.mark.parametrize("words", [["python"], ["python", "-"]])
def test_a_program_without_a_name_says_what_to_do(
    words: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(again.os, "execv", None)
    with caplog.at_level(logging.ERROR):
        again.run_again("a reason")
    assert "a reason; this process cannot run its command again by itself: its program has no name" in caplog.text


def test_a_notebook_says_what_to_do(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.setattr(again.os, "execv", None)
    again.run_again("a reason")
    assert "run the cell or the call again" in caplog.text
