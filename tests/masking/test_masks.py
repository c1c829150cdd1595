"""Masked contributions, and what becomes of their sums: bit for bit the sum of the plain integers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_parablock.errors import CallOrderError, MaskReuseError, SecureSumError, TooFewSitesError
from lightning_parablock.masking.agreement import Lane, pair_key
from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.opening import check_opened
from lightning_parablock.masking.ring import Ring
from tests.masking import oracle
from tests.masking.sessions import masks_of, names, secret, session


def integers(n_sites: int, n: int, ring: Ring, limit: int, dice: random.Random) -> dict[str, list[int]]:
    """Contributions with many values at the limits."""
    choices = [-limit, limit, 0]
    return {
        site: [dice.choice(choices) if dice.random() < 0.3 else dice.randint(-limit, limit) for _ in range(n)]
        for site in names(n_sites)
    }


def cut(n: int, dice: random.Random) -> list[tuple[int, int]]:
    """A range in parts of any length, in any order."""
    cuts = sorted({0, n, *(dice.randint(0, n) for _ in range(dice.randint(0, 6)))})
    parts = list(pairwise(cuts))
    dice.shuffle(parts)
    return parts


def masked(masks: Masks, values: Tensor, parts: Sequence[tuple[int, int]], lane: Lane = "values") -> Tensor:
    message = values.clone()
    for first, stop in parts:
        masks.apply(message[first:stop], 3, 1, lane, first)
    return message


@pytest.mark.parametrize("n_sites", range(2, 17))
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_sum_of_masked_values_is_the_sum_of_the_values(n_sites: int, width: int) -> None:
    dice, ring, n = random.Random(100 * n_sites + width), Ring(width), 300
    limit = ring.limit(n_sites)
    plain = integers(n_sites, n, ring, limit, dice)
    masks = masks_of(n_sites)
    messages = {
        site: masked(masks[site], torch.tensor(values, dtype=ring.dtype), cut(n, dice))
        for site, values in plain.items()
    }
    expected = [sum(column) for column in zip(*plain.values(), strict=True)]
    for _ in range(3):
        order = list(messages.values())
        dice.shuffle(order)
        total = torch.zeros(n, dtype=ring.dtype)
        for first, stop in cut(n, dice):  # the server adds part by part
            for message in order:
                ring.add(total[first:stop], message[first:stop])
        check_opened(total, n_sites, limit, "round 3")
        assert total.tolist() == expected


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_message_is_the_one_of_the_oracle(width: int) -> None:
    ring, members, dice = Ring(width), names(4), random.Random(width)
    salt = session(members[0], members).salt
    for place, site in enumerate(members):
        plain = [dice.randint(-5, 5) for _ in range(70)]
        keys = {
            other: pair_key(secret(site, name), salt, min(place, other), max(place, other), 3, 1, "values")
            for other, name in enumerate(members)
            if name != site
        }
        message = masked(masks_of(4)[site], torch.tensor(plain, dtype=ring.dtype), cut(70, dice))
        assert message.tolist() == oracle.masked(plain, place, keys, width)


def test_the_ring_wraps_around_at_its_ends() -> None:
    for width in (1, 2, 4):
        ring, least = Ring(width), -(2 ** (8 * width - 1))
        total = torch.tensor([least, -1, -least - 1], dtype=ring.dtype)
        ring.add(total, torch.tensor([-1, 1, 1], dtype=ring.dtype))
        assert total.tolist() == [-least - 1, 0, least]
        ring.subtract(total, torch.tensor([-1, 1, 1], dtype=ring.dtype))
        assert total.tolist() == [least, -1, -least - 1]
        assert ring.signed(total.view(torch.uint8)).tolist() == total.tolist()


def test_the_ring_refuses_other_types_and_holes() -> None:
    with pytest.raises(TypeError, match=r"contiguous values of torch\.int8"):
        Ring(1).add(torch.zeros(3, dtype=torch.int8), torch.zeros(3, dtype=torch.int16))
    with pytest.raises(TypeError, match="contiguous"):
        Ring(1).add(torch.zeros(6, dtype=torch.int8)[::2], torch.zeros(3, dtype=torch.int8))


@pytest.mark.parametrize("width", [1, 2])
def test_prepared_masks_are_the_same(width: int) -> None:
    n, dice, ring = 700_001, random.Random(4), Ring(width)
    values = torch.zeros(n, dtype=ring.dtype)
    expected = masked(masks_of(3)["site-1"], values, [(0, n)])
    for before in (True, False):
        masks = masks_of(3)["site-1"]
        parts, message = cut(n, dice), values.clone()
        for k, (first, stop) in enumerate(parts):
            if before or k == len(parts) // 2:
                masks.prepare(3, 1, "values", n, width)
            masks.apply(message[first:stop], 3, 1, "values", first)
        assert torch.equal(message, expected)
        assert masks._uses[3, 1, "values"].ahead is None, "the memory is free again"


def test_a_part_beyond_the_prepared_ones_is_masked_too() -> None:
    values = torch.zeros(100, dtype=torch.int8)
    masks = masks_of(3)["site-0"]
    masks.prepare(3, 1, "values", 60, 1)
    assert torch.equal(masked(masks, values, [(0, 50), (50, 100)]), masked(masks_of(3)["site-0"], values, [(0, 100)]))


def test_some_of_the_members_can_form_a_sum_of_their_own() -> None:
    masks, among = masks_of(5), ["site-4", "site-0", "site-2"]
    total = torch.zeros(50, dtype=torch.int16)
    for k, site in enumerate(among):
        message = torch.full((50,), k + 1, dtype=torch.int16)
        masks[site].apply(message, 0, 0, "values", 0, among)
        Ring(2).add(total, message)
    assert total.tolist() == [6] * 50


@pytest.mark.parametrize("second", [(0, 10), (9, 10), (0, 30), (10, 21), (20, 21)])
def test_a_mask_is_used_once(second: tuple[int, int]) -> None:
    masks, values = masks_of(3)["site-0"], torch.zeros(40, dtype=torch.int8)
    masks.apply(values[0:10], 3, 1, "values", 0)
    masks.apply(values[20:30], 3, 1, "values", 20)
    before = values.clone()
    with pytest.raises(MaskReuseError, match=r"round 3, block 1, values \d+ to \d+: site 'site-0' masked some of"):
        masks.apply(values[slice(*second)], 3, 1, "values", second[0])
    assert torch.equal(values, before)
    masks.apply(values[10:20], 3, 1, "values", 10)
    for other in ((4, 1, "values"), (3, 0, "values")):
        masks.apply(values[0:10], *other, 0)
    masks.apply(torch.zeros(10, dtype=torch.int32), 3, 1, "scales", 0)


def test_rounds_that_are_closed_stay_closed() -> None:
    masks, values = masks_of(3)["site-0"], torch.zeros(4, dtype=torch.int8)
    masks.apply(values, 3, 1, "values", 0)
    masks.close_rounds(4)
    masks.close_rounds(2)
    with pytest.raises(MaskReuseError, match="round 3, block 1, values: site 'site-0' has closed this round"):
        masks.apply(values, 3, 1, "values", 0)
    assert not masks._uses
    masks.apply(values, 4, 1, "values", 0)


def test_all_parts_of_an_exchange_have_the_same_sites_and_width() -> None:
    masks = masks_of(4)["site-0"]
    masks.apply(torch.zeros(4, dtype=torch.int8), 3, 1, "values", 0)
    with pytest.raises(CallOrderError, match="all parts of an exchange have the same"):
        masks.apply(torch.zeros(4, dtype=torch.int8), 3, 1, "values", 4, ["site-0", "site-1", "site-2"])
    with pytest.raises(CallOrderError, match="all parts of an exchange have the same"):
        masks.apply(torch.zeros(4, dtype=torch.int16), 3, 1, "values", 4)


@pytest.mark.parametrize("among", [["site-1", "site-2"], ["site-0", "site-9"], ["site-0", "site-0", "site-1"]])
def test_sites_outside_the_session_are_refused(among: list[str]) -> None:
    with pytest.raises(CallOrderError, match="is asked for a mask among"):
        masks_of(3)["site-0"].apply(torch.zeros(4, dtype=torch.int8), 3, 1, "values", 0, among)


def test_fewer_sites_than_a_sum_needs_are_refused() -> None:
    members = names(3)
    with pytest.raises(TooFewSitesError, match=r"a session has 3 sites .* needs 4 or more"):
        Masks("site-0", members, session("site-0", members), min_sites=4)
    with pytest.raises(TooFewSitesError, match=r"a session has 2 sites .* needs 3 or more"):
        Masks("site-0", names(2), session("site-0", names(2)))
    masks = Masks("site-0", members, session("site-0", members))
    with pytest.raises(TooFewSitesError, match="round 3, block 1, values has 2 sites"):
        masks.apply(torch.zeros(4, dtype=torch.int8), 3, 1, "values", 0, members[:2])


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "n_clients"), [(1, 3), (1, 16), (2, 3), (2, 200)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_n_times_l_is_refused(width: int, n_clients: int, sign: int) -> None:
    ring = Ring(width)
    limit = ring.limit(n_clients)
    sums = torch.zeros(50, dtype=ring.dtype)
    sums[17] = sign * n_clients * limit
    check_opened(sums, n_clients, limit, "round 3")
    if n_clients * limit == ring.limit(1):
        sums[17] = -n_clients * limit - 1  # one more is only possible below zero
    else:
        sums[17] += sign
    with pytest.raises(SecureSumError, match=f"round 3: a sum of {n_clients} clients lies between"):
        check_opened(sums, n_clients, limit, "round 3")


def test_an_empty_part_is_open() -> None:
    check_opened(torch.zeros(0, dtype=torch.int8), 3, 42, "round 3")


@pytest.mark.parametrize("fault", ["a part is missing", "another session", "another round", "other sites"])
def test_masks_that_do_not_cancel_are_noticed(fault: str) -> None:
    n, ring, limit = 1024, Ring(1), Ring(1).limit(4)
    total = torch.zeros(n, dtype=torch.int8)
    for site, masks in masks_of(4).items():
        message, is_odd = torch.zeros(n, dtype=torch.int8), site == "site-3"
        if is_odd and fault == "a part is missing":
            continue
        used = masks_of(4, "other")[site] if is_odd and fault == "another session" else masks
        among = ["site-0", "site-1", "site-3"] if is_odd and fault == "other sites" else None
        used.apply(message, 4 if is_odd and fault == "another round" else 3, 0, "values", 0, among)
        ring.add(total, message)
    with pytest.raises(SecureSumError, match="the masks did not cancel"):
        check_opened(total, 4, limit, "round 3")


def test_what_is_prepared_too_late_is_left_out() -> None:
    """The thread that prepares may be slower than an exchange, whose masks are then computed where they are used."""
    masks = masks_of(3)["site-0"]
    masks.close_rounds(5)
    masks.prepare(4, 0, "values", 1000, 1)
    with pytest.raises(MaskReuseError, match="has closed this round"):
        masks.apply(torch.zeros(1000, dtype=torch.int8), 4, 0, "values", 0)
