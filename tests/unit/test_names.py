"""How clients are named, with and without names of their sites."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lightning_parablock.federation.names import ClientNames


@pytest.mark.parametrize(
    ("names", "labels", "keys"),
    [
        (ClientNames(), ["client 0", "client 1", "client 2"], ["client_0", "client_1", "client_2"]),
        (ClientNames(("a", "b", "c")), ["site a", "site b", "site c"], ["site_a", "site_b", "site_c"]),
        (ClientNames(("a", "b", "c"), 3), ["site a", "site b", "site c"], ["site_a", "site_b", "site_c"]),
        (
            ClientNames(("a", "b"), 3),
            ["client 0 (site a)", "client 1 (site b)", "client 2 (site b)"],
            ["client_0", "client_1", "client_2"],
        ),
    ],
)
def test_labels_and_keys(names: ClientNames, labels: list[str], keys: list[str]) -> None:
    assert [names.label(client) for client in range(3)] == labels
    assert [names.key(client) for client in range(3)] == keys


def test_the_names_under_a_strategy() -> None:
    assert ClientNames.of(object()) == ClientNames()
    named = SimpleNamespace(site_names=("a", "b"), n_clients=2)
    assert ClientNames.of(named) == ClientNames(("a", "b"), 2)
    assert ClientNames(("a",)).label(7) == "client 7"
