"""Which errors of an exchange end this site's part in the run, because no other generation would mend them."""

from __future__ import annotations

from lightning_parablock.errors import ParaBlockError, PeerError, SecureSumError


def ends_the_site(error: Exception) -> bool:
    """Whether an exchange has failed for a reason that lies here, and not with a peer or a connection to one.

    What has failed here, such as a record that a full disk does not take, would fail in every generation: the members
    would connect again for each round, drop it, and train to the end without changing W. A sum that the clients cannot
    have told is refused at once, too: to repeat it would show more of them.
    """
    return not isinstance(error, PeerError) or isinstance(error, SecureSumError)


def as_ending(error: Exception) -> ParaBlockError:
    """The error with which the site ends."""
    if isinstance(error, ParaBlockError):
        return error
    ending = ParaBlockError(f"an exchange has failed at this site: {type(error).__name__}: {error}")
    ending.__cause__ = error
    return ending
