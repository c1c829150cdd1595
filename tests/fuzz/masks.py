"""What members of a secure sum state, and the record of a site's contributions."""

from __future__ import annotations

from lightning_parablock.errors import StatementError, SubmissionError
from lightning_parablock.masking.statements import SignedStatement, Statement
from lightning_parablock.masking.stretches import Stretch, context_of
from lightning_parablock.masking.submissions import Contents
from tests.fuzz.target import Target

_CONTEXT = context_of("settings", {"a": bytes(32)})
_STATEMENT = Statement(
    "b", "run", bytes(32), 3, ("a", "b", "c-1"), ((4, 0), (4, 1)), ((5, 0),), bytes(range(32)), bytes(32)
)
_RECORD = Contents(bytes(32), b"", (Stretch(_CONTEXT, b"", 0, 7), Stretch(_CONTEXT, bytes(16), 3, 9)))


def _statement(data: bytes) -> object:
    parsed = SignedStatement.parse(data, "b")
    assert SignedStatement.parse(parsed.text, "b") == parsed, "there is one spelling of what was read"
    return parsed


def _record(data: bytes) -> object:
    return Contents.parse(data.decode(errors="replace"), "the record").text


TARGETS = (
    Target("statement", _statement, (StatementError,), (SignedStatement(_STATEMENT, bytes(64)).text,)),
    Target(
        "contributions", _record, (SubmissionError,), (_RECORD.text.encode(), Contents(bytes(32), b"").text.encode())
    ),
)
