"""Clients with data of their own: all rows are trained on, validated and predicted, each once."""

from __future__ import annotations

import re

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.own_data"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


def test_every_client_shows_its_rows_and_no_other_clients(ranks: Ranks) -> None:
    for client, output in enumerate(ranks.run_all()):
        lines = re.findall(r"parablock: train: (client \d): \d+ of \d+ rows", output)
        assert lines and set(lines) == {f"client {client}"}
