"""Whole sites in one process with secure sums: signed statements and new keys for each generation, the loop's bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.errors import IdentityError, MembershipError, StatementError
from lightning_parablock.masking.statements import SignedStatement
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.membership import Member
from lightning_parablock.site_kit.roster import Roster
from tests.elastic.live_sites import ToySite, toy_model, train, until
from tests.elastic.oracle import Entry, Plan, replay
from tests.site_kit.sites import identities, signed, unsigned
from tests.support.local_arbiter import LocalLighthouse

LIMIT_S = 240.0
K = 2


class Clinic:
    """A federation of sites in this process.

    Args:
        folder: Of their keys.
        names: One letter for each site of the roster.
        settings: The run's.
    """

    def __init__(self, folder: Path, names: str, settings: Settings) -> None:
        self.identities = identities(folder, names)
        self.roster = signed(unsigned(self.identities), self.identities)
        self.settings = settings
        for site in self.identities.values():
            Submissions.create(site.folder)

    def maker(self, name: str, identity: Identity | None = None, roster: Roster | None = None) -> MaskMaker:
        """A new process' side of all agreements."""
        choice = self.settings.aggregation
        assert isinstance(choice, SecureAggregation)
        identity = identity or self.identities[name]
        submissions = Submissions(identity.folder)
        return MaskMaker(
            member=Member(roster or self.roster, identity),
            submissions=submissions,
            salt=submissions.fresh_salt(),
            nonce=name.encode() + str(time.monotonic_ns()).encode(),
            fingerprint=self.settings.fingerprint(),
            min_sites=3,
            bytes_per_value=choice.bytes_per_value,
        )


def settings(**options: Any) -> Settings:
    return Settings(
        local_steps=K,
        delay_steps=K,
        block_order="sequential",
        aggregation=SecureAggregation(2),
        straggler_timeout_s=LIMIT_S,
        **options,
    )


def started(clinic: Clinic, names: str, lighthouse: LocalLighthouse, rounds: int) -> dict[str, ToySite]:
    sites = {name: toy_site(clinic, name, lighthouse, rounds) for name in names}
    for site in sites.values():
        site.start()
    return sites


def toy_site(clinic: Clinic, name: str, lighthouse: LocalLighthouse, rounds: int, **how: Any) -> ToySite:
    return ToySite(
        name, lighthouse, clinic.settings, rounds, pause_s=0.01, min_clients=3, rejoin_timeout_s=LIMIT_S,
        masks=clinic.maker(name, **how),
    )  # fmt: skip


def ended(sites: Sequence[ToySite]) -> MembershipLog:
    """All sites have the bits of the loop that replays their log with plain sums of whole numbers."""
    until(lambda: not any(site.is_alive() for site in sites), sites, LIMIT_S)
    for site in sites:
        if site.error is not None:
            raise site.error
    log = max((site.site.log for site in sites), key=lambda one: one.generation)
    expected = replayed(log, sites[0].rounds)
    for site in sites:
        assert [torch.equal(mine, theirs) for mine, theirs in zip(site.weights, expected, strict=True)] == [True] * 3
        site.site.close()
    return log


def replayed(log: MembershipLog, rounds: int) -> list[Tensor]:
    model, flat = toy_model()

    def step(x: Tensor, X: list[Tensor], block: int, client: int, number: int) -> Tensor:
        for other, values in enumerate(X):
            flat.unpack(other, x if other == block else values)
        train(model, flat, block, client, number)
        return flat.pack(block)

    def cohort(t: int, members: Sequence[int]) -> dict[int, int]:
        return dict.fromkeys(members, t % 3)

    initial = [flat.pack(block).clone() for block in range(3)]
    plan = Plan(initial, rounds, K, K, 0, step, cohort, lambda client, t: 1, secure=2)
    entries = [
        Entry(one.generation, one.members, one.joiners, one.first_round, one.kept, (), one.drops) for one in log.records
    ]
    return replay(plan, entries).W


@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_a_lost_site_and_its_return_have_the_bits_of_the_loop(topology: str, tmp_path: Path, one_thread: None) -> None:
    clinic = Clinic(tmp_path, "abc", settings(topology=topology))
    lighthouse, rounds = LocalLighthouse(silence_s=5.0, founders=3), 60
    sites = started(clinic, "abc", lighthouse, rounds)
    until(lambda: all(s.engine is not None and s.engine.round >= 3 for s in sites.values()), sites.values(), LIMIT_S)
    sites["a"].kill()
    again = toy_site(clinic, "a", lighthouse, rounds)
    assert again.masks is not None and again.masks.salt, "it has contributed before, and draws other batches"
    again.start()
    log = ended([sites["b"], sites["c"], again])
    assert log.records[-1].members == (0, 1, 2) and log.records[-1].joiners == (0,) and again.started_at > 0
    assert all(len(record.members) >= 3 for record in log.records)
    dropped = [line.dropped for line in again.site.journal.lines] + [
        line.dropped for line in sites["b"].site.journal.lines
    ]
    assert any(dropped), "what was under way counts for nothing, and the journal says so"


def test_a_site_whose_record_cannot_be_used_ends_with_its_error_and_the_others_go_on(
    tmp_path: Path, one_thread: None
) -> None:
    clinic = Clinic(tmp_path, "abcd", settings())
    sites = started(clinic, "abcd", LocalLighthouse(silence_s=5.0, founders=4), 40)
    others = [sites[name] for name in "bcd"]

    def spoil(t: int) -> None:
        if t >= 3:  # each time: a record that is being written comes back with its own mode
            (clinic.identities["a"].folder / "submissions.json").chmod(0o644)

    sites["a"].on_round = spoil
    until(lambda: not sites["a"].is_alive(), others, LIMIT_S)
    assert isinstance(sites["a"].error, IdentityError) and "submissions.json" in str(sites["a"].error)
    sites["a"].kill()
    assert ended(others).newest.members == (1, 2, 3)


def test_a_site_that_cannot_agree_on_masks_for_its_own_reason_ends_and_keeps_nobody(
    tmp_path: Path, one_thread: None
) -> None:
    clinic = Clinic(tmp_path, "abcd", settings())
    lighthouse = LocalLighthouse(silence_s=5.0, founders=3)
    sites = started(clinic, "abc", lighthouse, 60)
    until(lambda: all(s.engine is not None and s.engine.round >= 2 for s in sites.values()), sites.values(), LIMIT_S)
    last = toy_site(clinic, "d", lighthouse, 60)
    (clinic.identities["d"].folder / "submissions.json").chmod(0o644)
    last.start()
    until(lambda: not last.is_alive(), sites.values(), LIMIT_S)
    assert isinstance(last.error, IdentityError) and "submissions.json" in str(last.error)
    last.kill()
    assert ended(list(sites.values())).newest.members == (0, 1, 2)


def test_a_site_that_is_not_in_the_roster_is_refused_by_name(tmp_path: Path, one_thread: None) -> None:
    clinic = Clinic(tmp_path, "abcd", settings())
    of_three = {name: clinic.identities[name] for name in "abc"}
    roster = signed(unsigned(of_three), of_three)
    lighthouse = LocalLighthouse(silence_s=5.0, founders=3)
    sites = {name: toy_site(clinic, name, lighthouse, 40, roster=roster) for name in "abc"}
    for site in sites.values():
        site.start()
    until(lambda: all(s.engine is not None and s.engine.round >= 2 for s in sites.values()), sites.values(), LIMIT_S)
    stranger = toy_site(clinic, "d", lighthouse, 40)
    stranger.start()
    until(lambda: stranger.error is not None or not stranger.is_alive(), sites.values(), LIMIT_S)
    assert isinstance(stranger.error, MembershipError) and "not in the roster" in str(stranger.error)
    stranger.site.close()
    assert ended(list(sites.values())).newest.members == (0, 1, 2)


RECORD = Record(4, (0, 1, 2), (2,), (0, 1, 2), 7, (5, 1), {0: "a", 1: "b", 2: "c"}, drops=True)


def agreed(clinic: Clinic, records: dict[str, Record], run: str = "run") -> dict[str, Any]:
    """What each site gets by an agreement with what the others said; first what they say, then what they make of it."""
    said: dict[str, bytes] = {}

    class Said(Exception):
        pass

    def note(name: str) -> Callable[[bytes], dict[str, bytes]]:
        def tell(text: bytes) -> dict[str, bytes]:
            said[name] = text
            raise Said

        return tell

    for name, record in records.items():
        with pytest.raises(Said):
            clinic.maker(name).agree(record, [(6, 0)], run, note(name))
    others = {name: text for name, text in said.items() if name != "a"}
    return {"a": clinic.maker("a").agree(records["a"], [(6, 0)], run, lambda text: {**others, "a": text}), **said}


def test_a_member_masks_after_it_has_verified_what_every_other_one_states(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, "abc", settings())
    found = agreed(clinic, dict.fromkeys("abc", RECORD))
    stated = SignedStatement.parse(found["b"], "b").statement
    assert (stated.run, stated.generation, stated.members) == ("run", 4, ("a", "b", "c"))
    assert (stated.kept, stated.dropped) == (((5, 1),), ((6, 0),))
    again = SignedStatement.parse(agreed(clinic, dict.fromkeys("abc", RECORD))["b"], "b").statement
    assert again.session_key != stated.session_key, "each generation, and each attempt at one, has a new key"


@pytest.mark.parametrize(
    ("other", "needle"),
    [
        (Record(5, (0, 1, 2), (2,), (0, 1, 2), 7, (5, 1), RECORD.sites, drops=True), "another generation"),
        (Record(4, (0, 1, 2), (2,), (0, 1, 2), 7, (4, 1), RECORD.sites, drops=True), "other exchanges that count"),
    ],
    ids=["generation", "kept"],
)
def test_a_member_that_was_told_something_else_ends_the_agreement(other: Record, needle: str, tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, "abc", settings())
    with pytest.raises(StatementError, match=f"site 'b' states {needle}"):
        agreed(clinic, {"a": RECORD, "b": other, "c": RECORD})


def test_a_round_is_masked_for_one_generation_alone(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, "abc", settings())
    submissions = clinic.maker("a").submissions
    salt = submissions.fresh_salt()
    assert salt == b"" and submissions.begin(3, "1" * 64, salt) == salt
    assert submissions.begin(3, "2" * 64, salt) != salt, "the same round with other members needs other batches"
    assert submissions.begin(4, "2" * 64, salt) == salt, "a later one does not"
    fresh = submissions.fresh_salt()
    assert fresh not in (salt, submissions.fresh_salt()) and submissions.begin(3, "3" * 64, fresh) == fresh
