"""Ranks that differ are told in what, and who has which value."""

from __future__ import annotations

import platform

import pytest
import torch

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.agreement import refuse_differences, versions_here
from lightning_parablock.settings import Settings

WHO = ["client 0 (rank 0 on a)", "client 1 (rank 1 on b)", "client 2 (rank 2 on b)"]


def test_equal_facts_pass() -> None:
    refuse_differences([{"local_steps": "16", "seed": "0"}] * 3, WHO)
    refuse_differences([{"local_steps": "16"}], WHO[:1])


def test_the_message_names_the_fact_and_who_has_what() -> None:
    facts = [Settings(local_steps=steps).fingerprint() for steps in (16, 8, 16)]
    with pytest.raises(ConfigurationError) as caught:
        refuse_differences(facts, WHO)
    assert str(caught.value) == (
        "local_steps differs between clients: client 0 (rank 0 on a) has 16; client 1 (rank 1 on b) has 8; "
        "client 2 (rank 2 on b) has 16; make it the same everywhere"
    )


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_fact_that_one_rank_lacks_is_a_difference(order: slice) -> None:
    facts = [{"torch": "2.13", "new": "1"}, {"torch": "2.13"}][order]
    with pytest.raises(ConfigurationError, match=r"new differs between clients: .* has absent"):
        refuse_differences(facts, WHO[:2])


def test_versions_name_what_matters() -> None:
    versions = versions_here()
    assert set(versions) == {"lightning-parablock", "torch", "lightning", "transformers", "Python"}
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["Python"] == ".".join(platform.python_version_tuple()[:2])
    assert "not installed" not in versions.values()
