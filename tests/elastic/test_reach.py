"""Which site has to go where not all reach all."""

from __future__ import annotations

import pytest

from lightning_parablock.elastic.reach import who_goes


@pytest.mark.parametrize(
    ("reached", "goes"),
    [
        ({"a": "abc", "b": "abc", "c": "abc"}, None),
        ({"a": "ab", "b": "abc", "c": "bc"}, "c"),
        ({"a": "a", "b": "bc", "c": "bc"}, "a"),
        ({"a": "ab", "b": "abc", "c": "abc"}, "c"),  # c hears a, and a does not hear c: of two the later one
        ({"a": "abcd", "b": "abcd", "c": "abc", "d": "abd"}, "d"),
        ({"a": "abc", "b": "abc", "c": ""}, "c"),
    ],
)
def test_the_worst_connected_goes(reached: dict[str, str], goes: str | None) -> None:
    assert who_goes({site: {site, *others} for site, others in reached.items()}, sorted(reached)) == goes
