"""Errors that this package raises on purpose; each message says what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class ParaBlockError(RuntimeError):
    """Base of all errors of this package."""


class ConfigurationError(ParaBlockError, ValueError):
    """A setting, a model, a file or a combination of them that cannot work; raised before any training starts."""


class DataError(ConfigurationError):
    """A data file, a column or a partition that cannot be used; the message names file and line if there is one."""


class CheckpointError(ConfigurationError):
    """A checkpoint, or the clients' state stored with it, that cannot be written or resumed from."""


class CardError(ConfigurationError):
    """A site's public card that was damaged, cut or altered on its way, or whose keys cannot be used."""


class IdentityError(ConfigurationError):
    """The private keys of a site that are missing, damaged, there already, or readable by other users."""


class RosterError(ConfigurationError):
    """A federation file, or a signature checked against it, that cannot be trusted; the message says what to do."""


class SubmissionError(ConfigurationError):
    """A site's record of its contributions is damaged, or a contribution was about to enter a second sum."""


class PeerError(ParaBlockError):
    """Something went wrong with another client; the message names client, round and block.

    Attributes:
        is_located: Whether the message already says where this client noticed the error.
    """

    is_located = False

    def at(self, round_index: int, block: str) -> PeerError:
        """The same error, with the round and block in which this client noticed it, and what to do."""
        then = "; the run cannot continue: restart all clients from the last checkpoint"
        return self._located(f"round {round_index}, block {block!r}", then)

    def in_generation(self, round_index: int, block: str) -> PeerError:
        """The same error, with round and block, where the members that are left carry the exchange out again."""
        return self._located(f"round {round_index}, block {block!r}", "")

    def outside_rounds(self, where: str) -> PeerError:
        """The same error, for a place where no round was running, such as "before the first round"."""
        return self._located(where, "")

    def after_last_round(self, n_rounds: int, *, may_be_dropped: bool = False) -> PeerError:
        """The same error, for a client that has merged everything, so that nothing is left to train.

        Args:
            n_rounds: How many rounds there were.
            may_be_dropped: Whether the others may have continued without this client, and without what it did last.
        """
        then = (
            "; this client has merged every exchange, so its model is the finished one, which is on its disk: use it, "
            "there is no need to train again"
        )
        if may_be_dropped:
            then = (
                "; this site has merged every exchange, and its model is on its disk; if it was frozen or cut off, the "
                "others have continued without it and may have ended with other weights: then take theirs"
            )
        return self._located(f"after the last of {n_rounds} rounds", then)

    def _located(self, where: str, then: str) -> PeerError:
        if self.is_located:
            return self
        located = type(self)(f"{where}: {self}{then}")
        located.is_located = True
        return located


class PeerLostError(PeerError):
    """A client's process ended, or its connection was closed, before the run was over."""


class PeerTimeoutError(PeerError):
    """A client gave no sign of life, or did not deliver its part of an exchange, within the limit."""


class ProtocolError(PeerError):
    """A message that was not expected: its version, round, block, length or checksum differs."""


class StatementError(ProtocolError):
    """What a site states before it masks is malformed, or differs from what it must be; the message names the site."""


class SecureSumError(ProtocolError):
    """A sum of masked contributions is none that the clients can have: it is refused before anything uses it."""


class MaskReuseError(ParaBlockError):
    """A mask would be used a second time, which would show the difference of two contributions to a server."""


class MembershipError(ParaBlockError):
    """A site cannot take part in the run, or the run cannot continue with the sites that are left; names them."""


class TooFewSitesError(MembershipError):
    """Fewer sites are here than ``min_clients``, or than ``min_sites`` of a secure sum: more have to come first."""


class WeightsLostError(MembershipError):
    """No site that is here holds the committed model, and those that are here may not start the run again."""


class SealedError(MembershipError):
    """A site that has sealed a generation was asked for that one or an older one.

    Attributes:
        sealed: The newest generation that it has sealed.
    """

    def __init__(self, message: str, sealed: int = -1) -> None:
        super().__init__(message)
        self.sealed = sealed


class ReplacedError(MembershipError):
    """A newer process of the same site has taken this one's place, so that this one must end."""


class ArbiterError(MembershipError):
    """The arbiter gave no list of the processes that are alive.

    Attributes:
        is_away: Whether it could not be reached; otherwise it was still waiting for the word of another process.
    """

    def __init__(self, message: str, is_away: bool = True) -> None:
        super().__init__(message)
        self.is_away = is_away


class UnreachableError(PeerError):
    """Another site's desk gave no answer: nothing listens there, the connection was cut, or it stayed silent.

    Attributes:
        kind: ``"refused"``: nothing listens at the address; ``"cut"``: the connection ended; ``"silent"``: nothing came
            within the limit; ``"foreign"``: what answered is no desk.
    """

    def __init__(self, message: str, kind: str = "cut") -> None:
        super().__init__(message)
        self.kind = kind


class RefusedError(PeerError):
    """Another site's desk answered with an error; its handlers raise it to choose the kind.

    Attributes:
        kind: Which error it is, in one word: the name of the error's class, or what the handler chose.
        details: Values for JSON that the handler adds for the caller's code.
    """

    def __init__(self, message: str, kind: str = "refused", details: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


class ResourceError(ParaBlockError):
    """This process cannot continue: it is out of file descriptors, or native code has aborted."""


class CallOrderError(ParaBlockError):
    """A method was called before another one that must be called first: an error of the caller, not of the run."""


class DivergenceError(ParaBlockError):
    """Clients that must hold the same bits do not."""


class NonFiniteError(ParaBlockError):
    """A client's delta, or the server's commit, contains NaN or infinity; the message names round and block."""


class DroppedError(MembershipError):
    """The run has continued without this site while it was silent: what it holds counts for nothing any more."""


class CutOffError(DroppedError):
    """This site reaches the lighthouse, and too few of the other sites, which continue without it.

    To run its command again would bring it back to the same network, and the others to a halt at every try.
    """
