"""From which of several checkpoints a run continues, where some were saved by runs that had continued others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Lineage = tuple[str, ...]
"""Ids of runs, oldest first: each one continued from a checkpoint of the one before. The last is the run itself."""


def newest_of(saved: Sequence[tuple[int, Lineage]]) -> int | None:
    """Index of the newest checkpoint: the highest round of the youngest run, and of equal ones the first.

    Args:
        saved: Round with which a run begins that continues from the checkpoint, -1 for no checkpoint, and the lineage
            of the run that saved it. The runs must be of one lineage, see :func:`are_of_one_lineage`.

    Returns:
        None where there is no checkpoint.
    """
    # A descendant wins over its ancestor even where the ancestor had come further: its sites went back to an earlier
    # round on purpose, or had nothing newer, and it has made the rounds since then again, with other sites. The
    # ancestor's later rounds are not part of that history.
    having = [(len(lineage), round_index, -i) for i, (round_index, lineage) in enumerate(saved) if round_index >= 0]
    return -max(having)[-1] if having else None


def are_of_one_lineage(lineages: Iterable[Lineage]) -> bool:
    """Whether each run is the youngest of them or one from which the youngest descends."""
    some = list(lineages)
    youngest = max(some, key=len, default=())
    return all(lineage[-1] in youngest for lineage in some)


def goes_back(continued: Lineage, noted: Lineage) -> bool:
    """Whether a run would give up what a younger one has done since.

    Args:
        continued: Of the run whose checkpoint is to be continued; empty for none.
        noted: Of a run in which a site had started a round and that has not finished; empty for none.
    """
    return bool(continued) and continued[-1] in noted[:-1]
