from __future__ import annotations

from typing import Any

import pytest

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings import Settings

ELASTIC: dict[str, Any] = {"lighthouse": "hub:29510", "min_clients": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lighthouse": "hub", "min_clients": 2}, "lighthouse must be host:port, such as"),
        ({"lighthouse": "hub:0", "min_clients": 2}, "lighthouse must be host:port, such as"),
        ({"lighthouse": "hub:1"}, "needs min_clients"),
        ({"min_clients": 2}, "min_clients belongs to elastic membership"),
        ({"silence_s": 3.0}, "silence_s belongs to elastic membership"),
        ({**ELASTIC, "min_clients": 0}, "min_clients must be a whole number >= 1"),
        ({**ELASTIC, "admit_every_rounds": 0}, "admit_every_rounds must be a whole number >= 1"),
        ({**ELASTIC, "rejoin_timeout_s": 5.0}, r"rejoin_timeout_s \(5\) must be longer than silence_s \(5\)"),
        ({**ELASTIC, "heartbeat_s": 3.0}, r"silence_s \(5\) must be at least twice heartbeat_s \(3\)"),
        ({**ELASTIC, "exchange_timeout_s": 5.0}, r"exchange_timeout_s \(5\) must be longer than silence_s \(5\)"),
        ({**ELASTIC, "straggler_timeout_s": 4.0}, r"straggler_timeout_s \(4\) must be longer than silence_s \(5\)"),
    ],
)
def test_impossible_combinations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings(**options)


def test_the_fingerprint_has_elastic_membership_only_where_there_is_one() -> None:
    fixed, elastic = Settings().fingerprint(), Settings(**ELASTIC).fingerprint()
    more = {"min_clients": "2", "rejoin_timeout_s": "600.0", "admit_every_rounds": "1", "silence_s": "5.0"}
    assert list(elastic.items()) == [*fixed.items(), *more.items()]
    assert Settings(**{**ELASTIC, "lighthouse": "other:1"}).fingerprint() == elastic


def test_limits_of_a_fixed_membership_do_not_know_of_silence() -> None:
    assert Settings(exchange_timeout_s=4.0, straggler_timeout_s=4.0).straggler_timeout_s == 4.0
