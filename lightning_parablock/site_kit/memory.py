"""The newest version of a federation that a site, or the hub, has seen: no older one replaces it."""

from __future__ import annotations

from pathlib import Path

from lightning_parablock.errors import RosterError
from lightning_parablock.site_kit.files import read_private, write_whole
from lightning_parablock.site_kit.roster import MOST_ROSTER_BYTES, Roster

SEEN = ".seen.yaml"
"""Follows a federation's name in the name of the file."""


class Memory:
    """The newest version of one federation, in a folder of keys.

    Args:
        folder: Of the keys; no other user may enter it.
        federation: Name of the federation.
    """

    def __init__(self, folder: Path, federation: str) -> None:
        self._path = folder / f"{federation}{SEEN}"

    def newest(self) -> Roster | None:
        """The newest version that was kept; None if there was none.

        Raises:
            IdentityError: other users can read the file.
            RosterError: it is damaged.
        """
        if not self._path.exists():
            return None
        text = read_private(self._path, MOST_ROSTER_BYTES)
        try:
            return Roster.parse(text)
        except RosterError as error:
            raise RosterError(f"{self._path}, where this site keeps what it has approved: {error}") from error

    def refuse_older(self, roster: Roster) -> Roster | None:
        """Refuse a version that is older than the newest one, or differs from it under the same number.

        Returns:
            The newest version so far.

        Raises:
            RosterError: the roster is one of these; or see :meth:`newest`.
        """
        newest = self.newest()
        if newest is None or roster.version > newest.version or roster.digest == newest.digest:
            return newest
        if roster.version < newest.version:
            raise RosterError(
                f"version {roster.version} of federation {roster.federation} is older than version {newest.version}, "
                f"{self._why_newer(newest)}"
            )
        raise RosterError(
            f"there are two different versions {roster.version} of federation {roster.federation}: this one, and the "
            f"one that is kept in {self._path}. Do not use either before you know why; federation add and federation "
            "revoke make a higher version"
        )

    def _why_newer(self, newest: Roster) -> str:
        missing = ", ".join(newest.unsigned_by())
        if newest.signatures and missing:
            return (
                f"which this site has approved, and which {missing} had not signed when it was kept in {self._path}: "
                "nothing can be started before all have signed it and the file with all signatures is here"
            )
        return (
            f"which is known here and kept in {self._path}: a site that was removed could come back with it; ask for "
            "the newest file, or use a copy of that one"
        )

    def keep(self, roster: Roster) -> None:
        """Remember a version, with its signatures and those that were known.

        Raises:
            RosterError: it is older, see :meth:`refuse_older`.
            ConfigurationError: it cannot be written.
        """
        newest = self.refuse_older(roster)
        if newest is not None and newest.digest == roster.digest:
            roster = roster.with_signatures(newest.signatures)
        if roster != newest:  # a run, which keeps nothing new, needs no right to write here
            write_whole(self._path, roster.text)
