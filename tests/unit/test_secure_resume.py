"""A stopped run with secure sums continues with its own salt, whatever the site has begun meanwhile."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.errors import SubmissionError
from lightning_parablock.masking.recorded import Record
from lightning_parablock.masking.stretches import context_of
from lightning_parablock.masking.submissions import FILE_NAME, Submissions
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.strategy.secure import _deciding, _OwnSide

ROUNDS = 5
"""Of the run, when it was stopped; the last one was under way."""


class Run:
    """One run of a site whose peers are always the same.

    Args:
        folder: Of the site's record.
        options: Of its settings.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options, self.nonce = folder, options, secrets.token_bytes(16)
        self.record = self.begun(None)
        self.begins_with = self.record.context, self.record.salt

    def begun(self, resumed: Resumed | None, **changes: Any) -> Record:
        """A fit begins, as of a checkpoint or anew."""
        submissions = Submissions(self.folder)
        saved = None if resumed is None else {"salt": self.record.salt.hex()}
        side = _OwnSide(submissions, saved, self.nonce, submissions.identifier(self.nonce))
        settings = Settings(aggregation=SecureAggregation(2), **(self.options | changes))
        return side.record(context_of(_deciding(settings), {"a": side.identifier, "b": b"", "c": b""}), resumed)

    def continued(self, **changes: Any) -> tuple[str, bytes]:
        """Context and salt with which it continues from the checkpoint with which it was stopped."""
        own: Any = {"engine": {"in_flight": [[ROUNDS - 1, 0]]}}
        record = self.begun(Resumed(ROUNDS, own), **changes)
        return record.context, record.salt

    def train(self, rounds: range) -> None:
        """Rounds are contributed; each of them is refused unless the record has the salt for it."""
        for round_index in rounds:
            self.record.submissions.begin_again(round_index, self.record.context, self.record.salt)


@pytest.fixture
def stopped(tmp_path: Path) -> Run:
    Submissions.create(tmp_path)
    run = Run(tmp_path)
    run.train(range(ROUNDS))
    return run


def test_a_run_that_was_started_by_mistake_leaves_the_stopped_one_as_it_was(stopped: Run) -> None:
    mistake = Run(stopped.folder)
    mistake.train(range(2))
    assert mistake.record.salt != stopped.record.salt
    assert stopped.continued() == stopped.begins_with
    stopped.train(range(ROUNDS, 2 * ROUNDS))
    assert stopped.continued() == stopped.begins_with, "and once more from the same checkpoint"


@pytest.mark.parametrize(
    "changes", [{"straggler_timeout_s": 9.0}, {"chunk_bytes": 8192}, {"topology": "star"}], ids=str
)
def test_a_run_continues_with_settings_that_change_no_sum(stopped: Run, changes: dict[str, Any]) -> None:
    assert stopped.continued(**changes) == stopped.begins_with
    assert stopped.continued() == stopped.begins_with


def test_a_refused_start_leaves_the_run_as_it_was(stopped: Run) -> None:
    text = (stopped.folder / FILE_NAME).read_text()
    with pytest.raises(SubmissionError, match=rf"another site, a setting, .*: round {ROUNDS - 1}: .* bring that back"):
        stopped.continued(local_steps=7)
    assert (stopped.folder / FILE_NAME).read_text() == text
    assert stopped.continued() == stopped.begins_with


def test_a_new_run_never_draws_what_another_one_has_drawn_in_a_later_round(tmp_path: Path) -> None:
    site = Submissions.create(tmp_path)
    joined = site.fresh_salt()
    assert site.begin(50, "1" * 64, joined) == joined
    run = Run(tmp_path)
    assert run.record.salt != joined
    run.train(range(60))
