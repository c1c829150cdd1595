"""One run of a comparison: a ``fit`` in a process of its own, kept where it is finished and still the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.runs.folder import MANIFEST_NAME
from lightning_parablock.system.exit_codes import TERMINATED

_NOT_COMPARED = ("run_dir", "config")
_STEPS_OF_ENDING = ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
"""Signals to a run that is to end, and the seconds it has after each."""


@dataclass(frozen=True)
class PlannedRun:
    """One method with one seed.

    Attributes:
        method: Name of the method.
        seed: Of everything.
        words: The command line after ``fit``, but for the run's folder.
        configuration: The resolved configuration.
        folder: The run's folder.
    """

    method: str
    seed: int
    words: tuple[str, ...]
    configuration: Mapping[str, Any]
    folder: Path

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")


def is_finished(run: PlannedRun) -> bool:
    """Whether the run's folder holds its result.

    Raises:
        ConfigurationError: it holds the result of another configuration; the message names the first difference.
    """
    manifest = manifest_of(run.folder)
    if manifest.get("state") != "finished" or "result" not in manifest:
        return False
    difference = first_difference(manifest.get("configuration"), run.configuration)
    if difference is not None:
        raise ConfigurationError(
            f"{run.folder} holds a finished run of another configuration: {difference}; name another --out, or say "
            "--overwrite to run it again"
        )
    return True


def forget(run: PlannedRun) -> None:
    """Remove what the run has left."""
    if run.folder.is_dir():
        shutil.rmtree(run.folder)
    run.log.unlink(missing_ok=True)


def execute(run: PlannedRun) -> None:
    """Run it; its folder and its log record whether it succeeded.

    The process has a session of its own: Ctrl-C reaches this process alone, which then ends the run, all its clients,
    and waits for that.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lightning_parablock", "fit", *run.words, "--run_dir", str(run.folder)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with run.log.open("wb") as log, _sigterm_raises():
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait()
        except BaseException:
            _end(process)
            raise


def manifest_of(folder: Path) -> dict[str, Any]:
    """The run's manifest; empty where there is none."""
    try:
        return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def last_words(run: PlannedRun) -> str:
    """The last line of the run's log that says what went wrong; the last one of all where none does."""
    text = run.log.read_text(encoding="utf-8", errors="replace") if run.log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]


def first_difference(one: Any, other: Any, name: str = "") -> str | None:
    """Where two configurations differ first, in words; None where they are the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other} - set(() if name else _NOT_COMPARED)):
            found = first_difference(one.get(key), other.get(key), f"{name}.{key}".removeprefix("."))
            if found is not None:
                return found
        return None
    if json.dumps(one, default=str) == json.dumps(other, default=str):
        return None
    return f"{name} was {one!r} and is {other!r}"


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, limit_s in _STEPS_OF_ENDING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: do not wait so long
            process.wait(limit_s)
            break
    with contextlib.suppress(ProcessLookupError):  # a client that its first one has left behind
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _sigterm_raises() -> Generator[None]:
    """Python's own way would leave the run behind."""

    def leave(*_: Any) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def planned(method: str, seed: int, words: Sequence[str], configuration: Mapping[str, Any], out: Path) -> PlannedRun:
    """A run of a comparison in ``out``."""
    resolved = {**configuration, "seed_everything": seed}
    named = (*words, "--seed_everything", str(seed))
    return PlannedRun(method, seed, named, resolved, out / "runs" / f"{method}-seed{seed}")
