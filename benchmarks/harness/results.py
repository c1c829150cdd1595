"""The schema of ``results/<question>.json``: raw values and everything needed to repeat the measurement.

Example:
    write_result("overlap", configuration={...}, seeds=[0, 1], network={"rate": "100mbit", "hosts": 2},
                 values={"delay_0_round_s": [...], "delay_k_round_s": [...]})

Standard library only; torch is asked for its GPUs only if the benchmark has loaded it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness.files import write_whole

SCHEMA_VERSION = 1
REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
FIELDS = (
    "schema_version", "question", "created", "git", "command", "configuration", "seeds", "hardware", "network",
    "versions", "values",
)  # fmt: skip
PACKAGES = ("lightning-parablock", "torch", "lightning", "transformers", "datasets", "torchmetrics", "torchft", "peft")
_NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")
"""A list of numbers that the encoder has spread over lines; a JSON string contains no line break."""


def write_result(
    question: str,
    *,
    configuration: Mapping[str, Any],
    seeds: Sequence[int],
    network: Mapping[str, Any],
    values: Mapping[str, Any],
    directory: Path = RESULTS,
) -> Path:
    """Write one result file atomically: readers see the old file or the new one, never a part of it.

    Args:
        question: File name without its suffix: lower-case letters, digits and underscores.
        configuration: All settings as resolved, including defaults.
        seeds: All seeds used.
        network: Rate, number of hosts and so on; ``{}`` if nothing was sent.
        values: Raw values, one per measurement, not their means. Names end with the unit (``round_s``, ``sent_bytes``).
        directory: Folder to write to.

    Raises:
        ValueError: a bad name, or values that are not JSON (NaN and infinities are not).
        OSError: the file cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9_]+", question):
        raise ValueError(f"question {question!r}: use lower-case letters, digits and underscores")
    record = {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "command": command_line(),
        "configuration": dict(configuration),
        "seeds": list(seeds),
        "hardware": hardware(),
        "network": dict(network),
        "versions": versions(),
        "values": dict(values),
    }
    try:
        text = _NUMBERS.sub(lambda match: " ".join(match[0].split()), json.dumps(record, indent=1, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"result {question!r} is not JSON: {error}") from error
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{question}.json"
    write_whole(path, text + "\n")
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read one result file. Raises ValueError naming the file and what is missing."""
    record = json.loads(path.read_text())
    missing = [name for name in FIELDS if name not in record]
    if missing:
        raise ValueError(f"{path} is no result file: it lacks {', '.join(missing)}")
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema {record['schema_version']}, this reads {SCHEMA_VERSION}: measure again")
    return record


def git_state() -> dict[str, Any]:
    """The checked-out commit and whether any file but results differs from it; both None outside a checkout."""
    changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {"sha": _git("rev-parse", "--verify", "HEAD"), "dirty": None if changes is None else bool(changes)}


def command_line() -> list[str]:
    """The running command, without paths of this machine."""
    words = list(sys.orig_argv)
    words[0] = "python"
    return [without_place(word) for word in words]


def without_place(word: str) -> str:
    """A path without this machine's folders: relative to the repository if inside it, else its last component."""
    inside = word.removeprefix(f"{REPOSITORY}{os.sep}")
    return Path(inside).name if os.path.isabs(inside) else inside


def without_places(text: str) -> str:
    """A message without the paths of the repository and of this Python installation."""
    return text.replace(f"{REPOSITORY}{os.sep}", "").replace(sys.prefix, "python")


def hardware() -> dict[str, Any]:
    """Processor, cores available to this process, memory in bytes and, if torch is loaded, its GPUs."""
    torch = sys.modules.get("torch")
    gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(gpus)] if torch is not None else [],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that affect the measurement; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=30)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
