"""What leaves a site in secure mode: its masked numbers, and lines in its own log where they do not suffice."""

from __future__ import annotations

import logging
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_parablock.codecs.feedback import Coder, Residual
from lightning_parablock.errors import NonFiniteError, SecureSumError, TooFewSitesError
from lightning_parablock.masking.ring import Ring
from lightning_parablock.server.payloads import Payloads
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.secure.exchange import Scale, SecureExchange
from lightning_parablock.server.secure.site import SitePayload, SiteValues
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import (
    BF16,
    NoCompression,
    SecureAggregation,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
)
from tests.masking.sessions import masks_of, names
from tests.property.test_secure_engine import Open

SIZE = 3001
WHOLE, PARTS = slice(0, SIZE), [slice(0, 1024), slice(1024, SIZE)]
KEY = (4, 0)


def upload(values: Tensor, weight: int = 1) -> Upload:
    return Upload(values, weight, Residual(None, torch.full((SIZE,), float("nan"))))


def delta(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def exchange(log: int, width: int = 1, n_clients: int = 3) -> SecureExchange:
    """One whose steps are made for values of a size of 2 ** (log / 65536)."""
    scale = Scale(torch.full((3,), n_clients * log, dtype=torch.int32), n_clients)
    return SecureExchange(KEY, SIZE, range(n_clients), tuple(names(3)), Ring(width), scale)


def written(site: SiteValues, part: slice) -> Tensor:
    return SitePayload(site, has_values=True, has_facts=True).here(part, Coder(NoCompression()))


@pytest.mark.parametrize("width", [1, 2])
def test_the_cut_into_parts_changes_no_bit_of_values_and_residuals(width: int) -> None:
    whole, cut = upload(delta(), 3), upload(delta(), 3)
    at_once = written(SiteValues(exchange(0, width), {5: whole}, Open()), WHOLE)
    site = SiteValues(exchange(0, width), {5: cut}, Open())
    values = torch.cat([written(site, part)[: width * (part.stop - part.start)] for part in PARTS])
    assert torch.equal(values, at_once[: width * SIZE])
    assert whole.residual is not None and cut.residual is not None
    assert torch.equal(whole.residual.after, cut.residual.after)


def test_a_message_holds_nothing_but_numbers_under_masks() -> None:
    """Two sites of one delta send bytes that have nothing in common, and what fills up a payload is zero."""
    masks = masks_of(3)
    first, second = (written(SiteValues(exchange(0), {0: upload(delta())}, masks[site]), WHOLE) for site in names(2))
    assert first[SIZE : SIZE + 3].tolist() == [0, 0, 0]
    assert (first == second).float().mean() < 0.02
    third = SiteValues(exchange(0), {0: upload(delta(), 7)}, masks["site-2"])
    payload = SitePayload(third, has_values=True, has_facts=True)
    assert (payload.weight, payload.gradient_norm) == (0, 0.0)


def test_a_buffer_that_is_used_again_shows_nothing_of_before() -> None:
    payload = torch.full((written(SiteValues(of_sites(4), {}, Open()), WHOLE).numel(),), 99, dtype=torch.uint8)
    SitePayload(SiteValues(of_sites(4), {}, Open()), has_values=True, has_facts=True).write(
        WHOLE, payload, Coder(NoCompression())
    )
    assert not payload[: SIZE + 3].any()


def test_a_warning_where_many_values_are_clamped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(SiteValues(exchange(-2 * 65536), {0: upload(delta())}, Open()), WHOLE)
    assert any("round 4, block 0" in line and "larger than the secure sum can hold" in line for line in caplog.messages)


def test_a_warning_where_most_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(SiteValues(exchange(9 * 65536), {0: upload(delta())}, Open()), WHOLE)
    assert any("leaves out of this site's deltas is 100 % of them" in line for line in caplog.messages)


def test_no_warning_where_the_steps_suit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(SiteValues(exchange(0), {0: upload(delta())}, Open()), WHOLE)
    assert caplog.messages == []


def facts(*logs: int, weight: int, clients: int, sites: int) -> Tensor:
    return torch.tensor([*logs, weight, clients + (sites << 16)], dtype=torch.int32)


@pytest.mark.parametrize(
    ("weight", "clients", "sites"),
    [(5, 5, 3), (1, 3, 3), (-1, -1, 0), (0, 1, 1), (3, 3, 0), (3, 0, 3), (9, 3, 4), (5, 2, 3), (3, 3, -1)],
)
def test_counts_that_no_clients_can_have_told(weight: int, clients: int, sites: int) -> None:
    with pytest.raises(SecureSumError, match="round 4, block 0, scalars 0 to 1023: 3 clients have told"):
        exchange(0).learn(PARTS[0], facts(0, weight=weight, clients=clients, sites=sites))


@pytest.mark.parametrize("other", [{"weight": 4, "clients": 3}, {"weight": 3, "clients": 0, "sites": 0}], ids=str)
def test_parts_that_tell_different_counts(other: dict[str, int]) -> None:
    one = exchange(0)
    one.learn(PARTS[0], facts(0, weight=3, clients=3, sites=3))
    with pytest.raises(SecureSumError, match="another part has told otherwise"):
        one.learn(PARTS[1], facts(0, 0, **{"sites": 3, **other}))


@pytest.mark.parametrize("sites", [1, 2])
def test_a_sum_to_which_too_few_sites_have_contributed_is_refused(sites: int) -> None:
    """Four sites host the cohort, and two of them had nothing to train on, or three."""
    with pytest.raises(TooFewSitesError, match=rf"block 0, scalars 0 to 3000: clients of only {sites} of the 4 sites"):
        of_sites(4).learn(WHOLE, facts(0, 0, 0, weight=9, clients=sites, sites=sites))


def test_a_sum_of_enough_sites_or_of_none_is_read() -> None:
    """Where no client has trained, the sum is zero and shows nothing."""
    of_sites(4).learn(WHOLE, facts(0, 0, 0, weight=9, clients=3, sites=3))
    of_sites(4).learn(WHOLE, facts(0, 0, 0, weight=0, clients=0, sites=0))


def test_a_site_that_has_not_trained_and_cannot_be_spared_sends_nothing() -> None:
    idle = Upload(torch.zeros(SIZE), 0)
    with pytest.raises(TooFewSitesError, match=r"round 4, block 0, .*: no client of this site has trained"):
        SiteValues(of_sites(3), {0: idle}, masks_of(3)["site-0"])
    written(SiteValues(of_sites(4), {0: idle}, masks_of(4)["site-0"]), WHOLE)
    written(SiteValues(of_sites(3), {0: idle, 1: upload(delta())}, masks_of(3)["site-0"]), WHOLE)


def of_sites(n_sites: int) -> SecureExchange:
    """One of as many clients as sites."""
    scale = Scale(torch.zeros(3, dtype=torch.int32), n_sites)
    return SecureExchange(KEY, SIZE, range(n_sites), tuple(names(n_sites)), Ring(1), scale)


@pytest.mark.parametrize(
    ("width", "optimizer", "compression"),
    list(product((1, 2), (ServerSGD(), ServerNesterov()), (NoCompression(), BF16()))),
)
def test_plans_know_the_payloads(width: int, optimizer: ServerOptimizer, compression: NoCompression | BF16) -> None:
    server = ServerShard(optimizer, [torch.zeros(SIZE)], compression=compression)
    hosts = Hosts(names(3), [(0,), (1,), (2,)])
    aggregator, coder = SecureAggregator(width, [SIZE], hosts, Open(), server), Coder(compression)
    scale = [[0, -1, torch.zeros(3, dtype=torch.int32), 3]]
    aggregator.load_state(scale)
    aggregator.stages(KEY, {}, range(3))
    planned = Payloads(SecureAggregation(width), compression, optimizer)
    for scalars in (1024, 1, SIZE):
        assert planned.contribution_bytes(scalars) == aggregator.contribution_bytes(KEY, scalars, coder)
        assert planned.commit_bytes(scalars) == aggregator.commit_bytes(KEY, scalars, coder)


@pytest.mark.parametrize("facts_alone", [False, True])
def test_values_that_overflow_are_refused_with_their_place(facts_alone: bool) -> None:
    """Each factor is finite: the delta was not discarded, but its product with the weight cannot be sent."""
    site = SiteValues(exchange(0), {0: upload(torch.full((SIZE,), 3e38), weight=9)}, Open())
    payload = SitePayload(site, has_values=not facts_alone, has_facts=True)
    with pytest.raises(NonFiniteError, match=r"round 4, block 0, scalars 0 to 3000: .*lower the learning rate"):
        payload.here(WHOLE, Coder(NoCompression()))


def test_scales_that_no_values_have_are_refused_with_their_place() -> None:
    with pytest.raises(SecureSumError, match="round 4, block 0, scalars 0 to 3000: the scales of 3 clients"):
        exchange(200 << 16).steps_of(WHOLE)
