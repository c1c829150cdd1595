"""The stored facts beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CHECKPOINT = FOLDER.parent / "data" / "format3.ckpt"


def stored(name: str) -> Any:
    """What ``name.json`` holds."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def store(name: str, facts: Any) -> None:
    """Write ``name.json``."""
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def as_json(facts: Any) -> Any:
    """The facts as they come back from a file: lists for tuples."""
    return json.loads(json.dumps(facts))
