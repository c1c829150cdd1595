"""A site's lasting record of its contributions to secure sums, over all of its runs (see stretches.py for the rule).

The record is made with the site's keys and lies beside them. It must outlive the site's checkpoints, and must not be
restored from a backup: a site that has lost it draws new batches, a site with an old one could contribute the same
batches to a second sum.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from lightning_parablock.errors import SubmissionError
from lightning_parablock.masking.stretches import NO_SALT, Stretch, Stretches, begin, refuse_unless_begun
from lightning_parablock.site_kit.files import make_private_folder, read_private, write_whole
from lightning_parablock.system.reading import reading

FILE_NAME = "submissions.json"
MOST_BYTES = 1 << 24
"""Some 70,000 stretches; a new one begins where the members or the settings change."""

_SECRET_BYTES = 32
_SALT_BYTES = 16
_CONTEXT_DIGITS = 64
_LOCK_S = 10.0
_MOST_ROUNDS = 1 << 62
T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """What the file holds.

    Attributes:
        secret: 32 random bytes, made with the file.
        first_salt: The salt of the first round; empty where the site is new.
        stretches: What has been contributed.
    """

    secret: bytes = field(repr=False)
    first_salt: bytes
    stretches: Stretches = ()

    @property
    def text(self) -> str:
        """As it is in the file."""
        said = [[s.context, s.salt.hex(), s.first, s.last] for s in self.stretches]
        whole = {"secret": self.secret.hex(), "first_salt": self.first_salt.hex(), "stretches": said}
        return json.dumps(whole, separators=(",", ":")) + "\n"

    @classmethod
    def new(cls, first_salt: bytes) -> Contents:
        """A record without contributions."""
        return cls(secrets.token_bytes(_SECRET_BYTES), first_salt)

    @classmethod
    def parse(cls, text: str, what: str) -> Contents:
        """What :attr:`text` has made.

        Raises:
            SubmissionError: it is something else.
        """
        with reading(what, SubmissionError):
            said = json.loads(text)
            secret = _hexadecimal(said["secret"], _SECRET_BYTES)
            return cls(secret, _salt(said["first_salt"]), tuple(map(_stretch, said["stretches"])))


class Submissions:
    """The record of one site, read and written anew at each call: several processes of a site may use it.

    Args:
        folder: Of the site's identity, which no other user may enter.

    Attributes:
        was_missing: Whether there was no record, so that it is unknown what the site has contributed before. It has one
            from now on, and draws batches that do not follow from the run's seed.

    Raises:
        SubmissionError: the file is damaged.
        IdentityError: the file or its folder cannot be used, or is open to other users.
    """

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        self._path = folder / FILE_NAME
        self._lock = FileLock(folder / f".{FILE_NAME}.lock", timeout=_LOCK_S, mode=0o600)
        self.was_missing = self._locked(lambda: self._make_if_missing(_new_salt()))
        self._locked(self._read)

    @classmethod
    def create(cls, folder: Path) -> Submissions:
        """The record of a site whose keys are new, so that it has contributed to nothing yet.

        Its batches follow from the run's seed until it must repeat a round for another sum.

        Raises:
            SubmissionError: the site has a record already.
        """
        make_private_folder(folder)
        path = folder / FILE_NAME
        if path.exists():
            raise SubmissionError(f"{path} is there already: the site may have contributed to sums; it is kept")
        write_whole(path, Contents.new(NO_SALT).text, is_new=True)
        return cls(folder)

    def identifier(self, local_state: bytes) -> bytes:
        """32 bytes that name this record and a state of the site, and tell nothing of it; the other sites learn them.

        Args:
            local_state: All that is the site's own and changes its contributions: digests of its data, its own options,
                versions of packages. Where its training is not repeatable to the bit, random bytes belong to it: if one
                site's contribution differs when all others repeat theirs, the difference of the sums is that of its.
        """
        return hmac.digest(self._locked(self._read).secret, b"identifier 1\n" + local_state, "sha256")

    def fresh_salt(self) -> bytes:
        """A salt with which the site has contributed to nothing: the first one of a new record, else a new one.

        It is for a process that does not know yet with which round it begins. Nothing is noted until :meth:`begin`.
        """
        contents = self._locked(self._read)
        return _new_salt() if contents.stretches else contents.first_salt

    def begin(self, round_index: int, context: str, salt: bytes | None = None) -> bytes:
        """The salt of a round that begins: empty, or 16 bytes to mix into the seeds of all that it draws.

        The round is on the disk when this returns.

        Args:
            round_index: The round.
            context: From :func:`~lightning_parablock.masking.stretches.context_of`.
            salt: To take where the rule allows it; None for the one used last.
        """

        def update() -> bytes:
            contents = self._read()
            stretches, found = begin(contents.stretches, round_index, context, contents.first_salt, _new_salt, salt)
            self._note(contents, stretches)
            return found

        return self._locked(update)

    def begin_again(self, round_index: int, context: str, salt: bytes, in_flight: Iterable[int] = ()) -> None:
        """Begin a round with the salt of a run that continues; nothing is noted where that cannot be.

        Args:
            round_index: The round.
            context: Of its sums.
            salt: With which the run drew before.
            in_flight: Rounds that were trained before, whose contributions enter sums of this context.

        Raises:
            SubmissionError: with this salt the site has contributed to other sums.
        """

        def update() -> None:
            contents = self._read()
            for earlier in in_flight:
                refuse_unless_begun(contents.stretches, earlier, context, salt)
            stretches, found = begin(contents.stretches, round_index, context, contents.first_salt, _new_salt, salt)
            if found != salt:
                raise SubmissionError(
                    f"round {round_index}: with the batches that this run draws, this site has contributed to a sum of "
                    "other sites or settings"
                )
            self._note(contents, stretches)

        self._locked(update)

    def _note(self, contents: Contents, stretches: Stretches) -> None:
        if stretches != contents.stretches:
            write_whole(self._path, replace(contents, stretches=stretches).text)

    def _make_if_missing(self, first_salt: bytes) -> bool:
        if self._path.exists():
            return False
        write_whole(self._path, Contents.new(first_salt).text, is_new=True)
        return True

    def _read(self) -> Contents:
        what = f"the record of contributions {self._path}"
        try:
            return Contents.parse(read_private(self._path, MOST_BYTES), what)
        except SubmissionError as error:
            raise SubmissionError(
                f"{error}; move it away, and do not restore it from a backup: this site, and with it all the others, "
                "then draws new batches for rounds that are repeated"
            ) from error

    def _locked(self, action: Callable[[], T]) -> T:
        try:
            with self._lock:
                return action()
        except Timeout as error:
            raise SubmissionError(
                f"the record of contributions {self._path} was locked by another process for {_LOCK_S:g} s; end it, or "
                "give each run of this machine a site of its own"
            ) from error


def _new_salt() -> bytes:
    return secrets.token_bytes(_SALT_BYTES)


def _stretch(said: Any) -> Stretch:
    context, salt, first, last = said
    _hexadecimal(context, _CONTEXT_DIGITS // 2)
    for number in (first, last):
        if type(number) is not int or not 0 <= number < _MOST_ROUNDS:
            raise ValueError(f"{number!r:.60} is no round")
    if first > last:
        raise ValueError(f"rounds {first} to {last} are none")
    return Stretch(context, _salt(salt), first, last)


def _salt(said: Any) -> bytes:
    return NO_SALT if said == "" else _hexadecimal(said, _SALT_BYTES)


def _hexadecimal(said: Any, n_bytes: int) -> bytes:
    data = bytes.fromhex(said)
    if len(data) != n_bytes or data.hex() != said:
        raise ValueError(f"{said!r:.80} is not {n_bytes} bytes as hexadecimal digits")
    return data
