"""What a storm leaves, and reading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Raw = dict[str, Any]
"""One run: ``began_s``, ``ended_s``, ``starts_s`` of each site's processes, ``exits``, ``faults`` and ``traces``."""
Lines = list[dict[str, Any]]
_COMMIT = "commit"


def read_traces(folder: Path) -> dict[str, Lines]:
    """The lines of every process, under ``<site>-<number of the process>``."""
    return {path.stem.removeprefix("trace-"): _lines(path) for path in sorted(folder.glob("trace-*.jsonl"))}


def _lines(path: Path) -> Lines:
    # A process may be killed while it writes.
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def packed(traces: dict[str, Lines]) -> dict[str, Any]:
    """The traces in a form that takes little room in a result file: commits by column, hashes and logs as one text."""
    return {name: _packed(lines) for name, lines in traces.items()}


def unpacked(traces: dict[str, Any]) -> dict[str, Lines]:
    """What :func:`packed` was given, in the order of time."""
    return {name: _unpacked(told) for name, told in traces.items()}


def _packed(lines: Lines) -> dict[str, Any]:
    commits = [line for line in lines if line["what"] == _COMMIT]
    others = [dict(line) for line in lines if line["what"] != _COMMIT]
    for line in others:
        if "log" in line:
            line["log"] = json.dumps(line["log"])
    names = [name for name in (commits[0] if commits else {}) if name not in ("what", "hash")]
    columns = {name: [line[name] for line in commits] for name in names}
    return {"lines": others, "commits": columns, "hashes": " ".join(line["hash"] for line in commits)}


def _unpacked(told: dict[str, Any]) -> Lines:
    others = [{**line, "log": json.loads(line["log"])} if "log" in line else line for line in told["lines"]]
    columns, hashes = told["commits"], told["hashes"].split()
    rows = zip(*columns.values(), strict=True) if columns else iter(())
    commits = [
        {**dict(zip(columns, row, strict=True)), "what": _COMMIT, "hash": text}
        for row, text in zip(rows, hashes, strict=True)
    ]
    return sorted([*commits, *others], key=lambda line: line["at_s"])


def lives(lines: Lines) -> list[Lines]:
    """The lines of a process, apart for each time that it has begun: a site that was dropped executes itself again."""
    found: list[Lines] = []
    for line in lines:
        if line["what"] == "imported" or not found:
            found.append([])
        found[-1].append(line)
    return found
