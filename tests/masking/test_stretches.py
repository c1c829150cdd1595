"""The rule that keeps sums apart: for one salt, a round is contributed to one context alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from lightning_parablock.errors import SubmissionError
from lightning_parablock.masking.stretches import (
    NO_SALT,
    Stretch,
    Stretches,
    begin,
    context_of,
    refuse_unless_begun,
)

A, B, C = (context_of("settings", {"x": bytes([n])}) for n in range(3))


class Site:
    """A record in memory, whose new salts are numbered."""

    def __init__(self, first_salt: bytes = NO_SALT) -> None:
        self.stretches: Stretches = ()
        self._first_salt, self._salts = first_salt, self._numbered()

    def _numbered(self) -> Iterator[bytes]:
        yield from (b"salt %d" % n for n in range(1000))

    def begin(self, round_index: int, context: str) -> bytes:
        self.stretches, salt = begin(self.stretches, round_index, context, self._first_salt, lambda: next(self._salts))
        return salt

    def run(self, rounds: range, context: str) -> list[bytes]:
        return [self.begin(round_index, context) for round_index in rounds]


def test_a_new_site_continues_without_a_salt_whatever_the_members_are() -> None:
    site = Site()
    assert site.run(range(5), A) + site.run(range(5, 9), B) + site.run(range(9, 12), A) == [NO_SALT] * 12
    assert site.stretches == (Stretch(A, NO_SALT, 0, 4), Stretch(B, NO_SALT, 5, 8), Stretch(A, NO_SALT, 9, 11))


def test_the_same_members_repeat_the_same_bits() -> None:
    site = Site()
    site.run(range(10), A)
    assert site.run(range(4, 12), A) == [NO_SALT] * 8
    assert site.stretches == (Stretch(A, NO_SALT, 0, 11),)


def test_other_members_repeat_a_round_with_another_salt_and_keep_it() -> None:
    site = Site()
    site.run(range(10), A)
    salts = site.run(range(4, 20), B)
    assert salts == [b"salt 0"] * 16
    assert site.run(range(6, 20), B) == salts[2:], "the same members once more"
    assert site.run(range(4, 10), A) == [NO_SALT] * 6, "the first members once more"
    assert site.run(range(10, 12), A) == [NO_SALT] * 2, "beyond what they had"


def test_each_new_set_of_members_has_its_own_salt() -> None:
    site = Site()
    assert [site.begin(0, context) for context in (A, B, C, B, A)] == [
        NO_SALT,
        b"salt 0",
        b"salt 1",
        b"salt 0",
        NO_SALT,
    ]


def test_a_change_of_members_in_the_first_pass_is_kept_apart_in_the_second_one() -> None:
    site = Site()
    site.run(range(5), A)
    site.run(range(5, 9), B)
    assert site.run(range(3, 9), A) == [NO_SALT] * 2 + [b"salt 0"] * 4


def test_rounds_in_between_count_as_contributed() -> None:
    site = Site()
    site.begin(0, A)
    site.begin(10, A)
    assert site.stretches == (Stretch(A, NO_SALT, 0, 10),)
    assert site.begin(5, B) == b"salt 0"


def test_a_stretch_does_not_reach_over_others_of_its_salt_or_context() -> None:
    site = Site()
    site.run(range(12, 16), A)
    site.run(range(8, 20), B)  # a new salt from 12 on
    salt = site.begin(8, A)
    site.begin(16, A)
    assert site.begin(13, A) == NO_SALT, "rounds 12 to 15 keep the salt that they had, whatever was used around them"
    assert salt != NO_SALT


def test_a_site_with_an_unknown_past_begins_with_a_salt_of_its_own() -> None:
    assert Site(b"first").run(range(3), A) == [b"first"] * 3


def test_in_random_histories_no_salt_is_used_twice_in_a_round_and_no_context_has_two_salts() -> None:
    for seed in range(500):
        dice, site = random.Random(seed), Site()
        by_salt: dict[tuple[int, bytes], str] = {}
        by_context: dict[tuple[int, str], bytes] = {}
        for _ in range(12):
            first, context = dice.randint(0, 12), dice.choice((A, B, C))
            for round_index in sorted(dice.sample(range(first, first + 8), dice.randint(1, 8))):
                salt = site.begin(round_index, context)
                assert by_salt.setdefault((round_index, salt), context) == context
                assert by_context.setdefault((round_index, context), salt) == salt
                refuse_unless_begun(site.stretches, round_index, context, salt)


@pytest.mark.parametrize(("round_index", "context", "salt"), [(3, B, NO_SALT), (3, A, b"other"), (9, A, NO_SALT)])
def test_what_was_made_for_another_sum_is_refused(round_index: int, context: str, salt: bytes) -> None:
    site = Site()
    site.run(range(5), A)
    site.run(range(5, 9), B)
    refuse_unless_begun(site.stretches, 3, A, NO_SALT)
    with pytest.raises(SubmissionError, match=f"round {round_index}: its contribution was made for a sum of other"):
        refuse_unless_begun(site.stretches, round_index, context, salt)


def test_a_context_names_the_settings_and_every_sites_record() -> None:
    contexts = {
        context_of("settings", {"a": b"1", "b": b"2"}),
        context_of("others", {"a": b"1", "b": b"2"}),
        context_of("settings", {"a": b"2", "b": b"1"}),
        context_of("settings", {"a": b"1"}),
        context_of("settings", {"a": b"1", "b": b"3"}),
        context_of("settings", {"a": b"1b2"}),
        context_of("settingsa1", {"b": b"2"}),
    }
    assert len(contexts) == 7
    assert context_of("settings", {"b": b"2", "a": b"1"}) in contexts
