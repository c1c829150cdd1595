"""A site's account of who was a member when: ``membership.jsonl``, one line per opening and one for its own end."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_parablock.errors import ConfigurationError, DroppedError
from lightning_parablock.regroup.changes import Change
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

FILE_NAME = "membership.jsonl"
OPENED, TOLD = "opened", "told"
FINISHED, LEFT, DROPPED, FAILED = "finished", "left", "dropped", "failed"
"""Ways in which a site's part in a run ends."""


@dataclass(frozen=True)
class Line:
    """One line of a journal.

    Attributes:
        time_s: When it was written, seconds of ``time.time()``.
        event: "opened"; "told" for a generation that had opened before the site came; or how the site's part ended:
            "finished", "left", "dropped" (the run has continued without it) or "failed".
        site: The site whose journal it is.
        run: Id of the run.
        record: The generation; None where the line says how the site's part ended.
        joined: Sites that did not continue from the generation before without a break.
        gone: Sites that were members and are none any more, each with the reason.
        redone: Rounds whose exchanges this site attempts again since the opening.
        dropped: Rounds whose exchanges were under way at the opening and count for nothing, with secure sums.
        why: The reason for an end that is none of the site's own.
    """

    time_s: float
    event: str
    site: str
    run: str
    record: Record | None = None
    joined: tuple[str, ...] = ()
    gone: Mapping[str, str] = field(default_factory=dict[str, str])
    redone: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="milliseconds"),
            "event": self.event,
            "site": self.site,
            "run": self.run,
        }
        if self.record is None:
            return {**said, "why": self.why}
        return {
            **said,
            "record": self.record.to_json(),
            "kept": list(self.record.kept),
            "joined": list(self.joined),
            "gone": dict(self.gone),
            "redone": list(self.redone),
            **({"dropped": list(self.dropped)} if self.dropped else {}),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Line:
        """What :meth:`to_json` wrote."""
        return cls(
            time_s=datetime.fromisoformat(said["time"]).timestamp(),
            event=str(said["event"]),
            site=str(said["site"]),
            run=str(said["run"]),
            record=Record.from_json(said["record"]) if "record" in said else None,
            joined=tuple(map(str, said.get("joined", ()))),
            gone={str(name): str(why) for name, why in said.get("gone", {}).items()},
            redone=tuple(map(int, said.get("redone", ()))),
            dropped=tuple(map(int, said.get("dropped", ()))),
            why=str(said.get("why", "")),
        )


class Journal:
    """Notes openings from the desk's threads, in memory until a folder is known and in its file from then on.

    A process that was started again in the same folder continues the file of the one before.

    Args:
        site: Name of the site.
    """

    def __init__(self, site: str) -> None:
        self._site = site
        self._lines: list[Line] = []
        self._path: Path | None = None
        self._written: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines of this process, oldest first."""
        with self._lock:
            return tuple(self._lines)

    def keep_in(self, folder: Path) -> None:
        """Write what has been noted to ``membership.jsonl`` in the folder, and from now on each line as it comes."""
        with self._lock:
            self._path = folder / FILE_NAME
            if self._path.is_file():
                _cut_torn(self._path)
                self._written = {(one.run, _generation(one)) for one in read_lines(self._path)}
            self._write(self._lines)

    def note_opening(
        self, newest: MembershipLog, run: str, redone: Sequence[Key] = (), dropped: Sequence[Key] = ()
    ) -> None:
        """A generation has opened here: say so to the user, and note it with those that have not been noted yet.

        Args:
            newest: The log up to the generation.
            run: Id of the run.
            redone: Exchanges that this site attempts again.
            dropped: Exchanges that count for nothing.
        """
        rounds = ", ".join(map(str, _rounds(dropped)))
        lost = f"; what was under way counts for nothing: round {rounds}" if dropped else ""
        log.warning("parablock: %s%s", Change.newest(newest).in_words(), lost)
        now_s = time.time()
        with self._lock:
            known = max(map(_generation, self._lines), default=-1)
            fresh = [change for change in Change.all_of(newest) if change.record.generation > known]
            lines = [
                Line(
                    time_s=now_s,
                    event=TOLD if known < 0 and change is not fresh[-1] else OPENED,
                    site=self._site,
                    run=run,
                    record=change.record,
                    joined=change.joined,
                    gone=change.gone,
                    redone=_rounds(redone) if change is fresh[-1] else (),
                    dropped=_rounds(dropped) if change is fresh[-1] else (),
                )
                for change in fresh
            ]
            self._lines += lines
            self._write(lines)

    def note_end(self, event: str, run: str, why: str = "") -> None:
        """Note how the site's part in the run has ended; only the first end counts."""
        with self._lock:
            if self._is_over or not self._lines:
                return
            self._is_over = True
            line = Line(time.time(), event, self._site, run, why=why)
            self._lines.append(line)
            self._write([line])

    def note_failure(self, error: Exception | None, run: str) -> None:
        """Note that the site's part has ended before the run has.

        Args:
            error: What has ended it; None where that is not known here: an error of the training, say.
            run: Id of the run.
        """
        why = "its process ended before the run did" if error is None else str(error)
        self.note_end(DROPPED if isinstance(error, DroppedError) else FAILED, run, why)

    def _write(self, lines: Sequence[Line]) -> None:
        """Append lines, except those of generations that a process before has seen open; the caller holds the lock."""
        if self._path is None:
            return
        fresh = [one for one in lines if one.event != TOLD or (one.run, _generation(one)) not in self._written]
        if not fresh:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _append(self._path, "".join(json.dumps(one.to_json()) + "\n" for one in fresh))
        except OSError as error:  # a full disk is no reason to stop training: the log itself is in the checkpoints
            log.warning("parablock: %s cannot be written, and is not continued: %s", self._path, error)
            self._path = None


def read_lines(path: Path) -> list[Line]:
    """The lines of a journal, oldest first; a last line that was torn by the end of its process is left out.

    Raises:
        ConfigurationError: another line is not one of a journal.
    """
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [_read_line(line, f"line {number} of the journal {path}") for number, line in enumerate(lines, 1) if line]


def _read_line(line: bytes, what: str) -> Line:
    with reading(what, ConfigurationError):
        return Line.from_json(json.loads(line))


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _cut_torn(path: Path) -> None:
    """Remove what a process has left that was killed while it wrote a line."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)


def _rounds(keys: Sequence[Key]) -> tuple[int, ...]:
    return tuple(sorted({key[0] for key in keys}))


def _generation(line: Line) -> int:
    return -1 if line.record is None else line.record.generation
