"""Number of optimizer steps per round on a rank, from the files of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_parablock.federation.cohorts import hosted_clients, turns_of_a_round
from lightning_parablock.runs.files import RunFiles


def round_steps(run: RunFiles) -> int:
    """Optimizer steps of a rank in a round: the local steps of all its turns; at least 1."""
    settings: Mapping[str, Any] = (run.manifest.get("strategy") or {}).get("settings") or {}
    n_ranks = run.manifest.get("ranks") or len(run.manifest.get("hosts") or ()) or 1
    hosted = hosted_clients(_number(settings, "clients") or n_ranks, n_ranks)
    return _local_steps(run, settings) * turns_of_a_round(_number(settings, "cohort"), hosted)


def _local_steps(run: RunFiles, settings: Mapping[str, Any]) -> int:
    """K, which with local_steps="auto" is known only from the finished rounds."""
    said, rounds = _number(settings, "local_steps"), len({one.round for one in run.rounds})
    steps: int = (run.manifest.get("result") or {}).get("steps", 0)
    return said or max(1, math.ceil(steps / max(1, rounds)))


def _number(settings: Mapping[str, Any], name: str) -> int | None:
    found = str(settings.get(name))
    return int(found) if found.isdigit() else None
