"""Random histories of losses, returns, joins and leaves, with the real engine: the bits of the plain loop."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.elastic.histories import History

N_HISTORIES = int(os.environ.get("ELASTIC_HISTORIES", "160"))
"""``make soak`` runs 2,000."""
GROUPS = 8

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_histories_have_the_bits_of_the_plain_loop(group: int) -> None:
    seen = Counter[str]()
    for seed in range(group, N_HISTORIES, GROUPS):
        try:
            seen += History(seed).check()
        except Exception as error:
            error.add_note(f"history {seed}: History({seed}).check() repeats it")
            raise
    print(dict(sorted(seen.items())))
    for what in ("histories compared", "joins", "redone exchanges", "kept commits forwarded to survivors"):
        assert seen[what] >= N_HISTORIES // GROUPS // 4, f"histories that show little: {seen}"
    assert seen["joins in the warm-up"], f"no history shows it: {seen}"
