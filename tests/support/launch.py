"""Start N ranks of a worker module on this machine and wait for them, with a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set, for ranks on this machine."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "GROUP_RANK": "0",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def run_ranks(n_ranks: int, arguments: Sequence[str], *, timeout_s: float, expect_code: int | None = 0) -> list[str]:
    """Run ``python *arguments`` once a rank and return each rank's output.

    Raises:
        AssertionError: a rank ended with another code than expected, or had to be killed at the limit.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(n_ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env=rank_environment(rank, n_ranks, port),
                cwd=ROOT,
                stdout=logs[rank].open("w"),
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            for rank in range(n_ranks)
        ]
        codes = _wait(processes, timeout_s)
        texts = [log.read_text(errors="replace") for log in logs]
    bad = [r for r, code in enumerate(codes) if code is None or (expect_code is not None and code != expect_code)]
    report = "\n".join(f"--- rank {rank}: exit code {codes[rank]}\n{texts[rank][-6000:]}" for rank in range(n_ranks))
    assert not bad, f"ranks {bad} did not end with {expect_code}:\n{report}"
    if expect_code is None:
        assert all(codes), f"every rank must end with an error:\n{report}"
    return texts


def _wait(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> list[int | None]:
    """Exit codes; None for a rank that was killed at the limit. One failed rank leaves the others 30 s to notice."""
    deadline_s = time.monotonic() + timeout_s
    while any(p.poll() is None for p in processes) and time.monotonic() < deadline_s:
        time.sleep(0.05)
        if any(p.poll() for p in processes):
            deadline_s = min(deadline_s, time.monotonic() + 30)
    codes = [p.poll() for p in processes]
    for process in processes:
        process.kill()
        process.wait()
    return codes
