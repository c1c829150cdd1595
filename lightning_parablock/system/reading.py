"""Reading what another process or another program has written: whatever is wrong with it becomes one named error."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from lightning_parablock.errors import ParaBlockError, ProtocolError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, SyntaxError)
"""What code raises that takes values apart which are not of the form that it expects."""
_LONGEST = 200


@contextlib.contextmanager
def reading(what: str, refusal: type[ParaBlockError] = ProtocolError) -> Generator[None]:
    """Take values apart that came from elsewhere, and nothing else: errors of this site would be blamed on the sender.

    Args:
        what: What is read, and from whom; it begins the message.
        refusal: The error that is raised where it is malformed. A ProtocolError of a part of it becomes one of these;
            other errors of this package are raised as they are.

    Raises:
        ParaBlockError: of the kind ``refusal``; something is missing, or is not of its type.
    """
    try:
        yield
    except ProtocolError as error:  # of a part of it
        raise refusal(f"{what}: {error}") from error
    except ParaBlockError:
        raise
    except MALFORMED as error:
        raise refusal(f"{what} is malformed: {_why(error)}") from error


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r:.{_LONGEST}}" if error.args else "something is missing in it"
    return (str(error).splitlines() or [type(error).__name__])[0][:_LONGEST]
