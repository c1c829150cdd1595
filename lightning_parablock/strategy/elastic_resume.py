"""From which checkpoint the founders of an elastic run continue: the newest that any of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_parablock.checkpointing.checkpoints import OF_ALL
from lightning_parablock.checkpointing.client_states import PATH_ONLY
from lightning_parablock.checkpointing.elastic_checkpoints import KEY, ElasticEntry, read_elastic, without_progress
from lightning_parablock.checkpointing.formats import in_present_words
from lightning_parablock.checkpointing.plain import is_remote
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.collectives import Gathering
from lightning_parablock.launching.checkpoint_choice import Choice
from lightning_parablock.regroup.lineage import Lineage, are_of_one_lineage, newest_of
from lightning_parablock.settings import AUTO
from lightning_parablock.strategy.elastic_run import ElasticRun
from lightning_parablock.system.payloads import from_bytes, to_bytes
from lightning_parablock.system.reading import reading

_WHAT = "the checkpoint from which the run continues"


@dataclass(frozen=True)
class HeldFile:
    """A checkpoint of an elastic run on this site's disk, which has been read.

    Attributes:
        checkpoint: What a run takes of it.
        entry: What it says of its run.
    """

    checkpoint: dict[str, Any]
    entry: ElasticEntry

    def is_like(self, entry: ElasticEntry) -> bool:
        """Whether another site's file is of the same round of the same run."""
        mine = self.entry
        said = entry.lineage, entry.round, entry.weights_sha256
        return said == (mine.lineage, mine.round, mine.weights_sha256)


class _Told(NamedTuple):
    """What one founder says to the others of its checkpoint.

    Attributes:
        path: What the user named, or a search has found; None for none.
        lineage: Of the run that saved the file; empty where the site has none.
        round: With which a run begins that continues from it.
        weights_sha256: Checksum of W in it.
        problem: Why this run cannot continue from it; empty for no reason.
        missing: Why a search has found none, where that is an error; empty for no reason.
    """

    path: str | None
    lineage: Lineage = ()
    round: int = -1
    weights_sha256: str = ""
    problem: str = ""
    missing: str = ""

    @property
    def described(self) -> str:
        """The file in words."""
        return f"{self.path}, run {self.lineage[-1]}, round {self.round}"


def held_checkpoint(files: CheckpointIO, path: str | None, weights_only: bool | None = None) -> HeldFile | None:
    """What a site would continue from; None where it has no such file.

    The same command may name a file that only some sites have.

    Args:
        files: How Lightning reads checkpoints.
        path: What the user named, or a search has found.
        weights_only: False lets the file hold any Python object.

    Raises:
        ConfigurationError: the file is no checkpoint of an elastic run.
        CheckpointError: it is damaged, or of another version.
    """
    if path is None or not (is_remote(path) or Path(path).is_file()):
        if path is not None:
            rank_zero_info(f"parablock: {path} is not on this site's disk: another founder may have it")
        return None
    checkpoint = read_elastic(files, path, weights_only)
    entry = ElasticEntry.of(checkpoint, path)
    return HeldFile(without_progress(checkpoint), entry)


@dataclass(frozen=True)
class ShareOfCheckpoint:
    """How the founders get the checkpoint on which they have agreed; the same at all of them.

    Attributes:
        source_rank: Number of the first founder that has it.
        source: Its client id.
        is_everywhere: Whether all founders have it.
        lineage: Of the run that saved it.
    """

    source_rank: int
    source: int
    is_everywhere: bool
    lineage: Lineage

    @classmethod
    def agreed(
        cls, ranks: Gathering, run: ElasticRun, found: Choice, held: HeldFile | None, settings: Mapping[str, str]
    ) -> ShareOfCheckpoint | None:
        """Agree on the newest checkpoint; None where none was named, and for guests. Collective.

        Args:
            ranks: The sites of the run.
            run: This site's part in it.
            found: What the user named here, or a search has found.
            held: That file, where this site has it.
            settings: The run's, printable.

        Raises:
            ConfigurationError: no founder has the file that was named, their files are of runs of which neither
                continued the other, or of a run with other settings; the same at all founders.
        """
        mine = _Told(found.path, missing=found.problem or "")
        if held is not None:
            entry = held.entry
            problem = _other_setting(entry.settings, settings)
            mine = _Told(found.path, entry.lineage, entry.round, entry.weights_sha256, problem)
        said = ranks.gather_objects(_plain(mine))
        with reading("what a founder says of its checkpoint"):
            told = [_Told(*one) for one in said]
        if not run.entry.is_founder:
            return None
        founders = [f"site {run.name_of(client)}" for client in run.group.clients]
        _refuse_unfit(told, founders)
        source = newest_of([(one.round, one.lineage) for one in told])
        if source is None:
            return None
        _say_what_yields(told, source, founders)
        is_everywhere = all(one[1:] == told[source][1:] for one in told)
        return cls(source, run.group.clients[source], is_everywhere, told[source].lineage)

    def load(
        self, run: ElasticRun, held: HeldFile | None, *, tells_own: bool = True
    ) -> tuple[dict[str, Any], ElasticEntry]:
        """The checkpoint and its entry; collective among the founders where not all of them have it.

        Args:
            run: This site's part in the run.
            held: Its own file.
            tells_own: Whether others get what the callbacks and the module of the site that has it have put into it.
                Without that, a site whose file is of the same round takes its own.

        Raises:
            ConfigurationError: it has to be sent, and holds an object of the user's own; the same at all founders.
        """
        if self.is_everywhere:
            assert held is not None, "all founders have it"
            return held.checkpoint, held.entry
        is_source = run.client == self.source
        payload = b""
        if is_source and held is not None:
            payload = _to_send(held.checkpoint if tells_own else _of_all(held.checkpoint), run.name_of(self.source))
        received: dict[str, Any] | str = from_bytes(run.group.hand_out(payload, self.source, _WHAT), _WHAT)
        if isinstance(received, str):
            raise ConfigurationError(received)
        entry = ElasticEntry.of(received, _WHAT)
        if not tells_own and held is not None and held.is_like(entry):
            return held.checkpoint, held.entry
        return received, entry


def _of_all(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What is no site's own: W, and where the trainers of all sites were."""
    return without_progress({name: value for name, value in checkpoint.items() if name in (*OF_ALL, KEY)})


def _to_send(checkpoint: dict[str, Any], site: str) -> bytes:
    """The bytes of a checkpoint, or of the reason why it cannot be sent: the others wait for one of the two."""
    try:
        return to_bytes(checkpoint, _WHAT)
    except ConfigurationError as error:
        why = f"{error}; keep plain values there, or copy the checkpoint of site {site} to every founder"
        return to_bytes(why, _WHAT)


def _plain(told: _Told) -> tuple[Any, ...]:
    return tuple(told)


def _other_setting(saved: Mapping[str, str], now: Mapping[str, str]) -> str:
    saved, now = in_present_words(saved), in_present_words(now)
    for name, value in saved.items():
        is_taken_over = name == "blocks" and now.get(name) == repr(AUTO) and value.isdecimal()
        if name not in PATH_ONLY and now.get(name) != value and not is_taken_over:
            return f"{name}={value}, this run has {now.get(name)}"
    return ""


def _refuse_unfit(told: Sequence[_Told], founders: Sequence[str]) -> None:
    """Raise a ConfigurationError where the founders' files do not say from where the run continues."""
    named = [(site, one) for site, one in zip(founders, told, strict=True) if one.path is not None]
    having = [(site, one) for site, one in named if one.lineage]
    missing = [f"{site}: {one.missing}" for site, one in zip(founders, told, strict=True) if one.missing]
    if (named or missing) and not having:
        said = "; ".join([*(f"{site} names {one.path}" for site, one in named), *missing])
        raise ConfigurationError(f"no founder has the checkpoint that was to be continued: {said}; correct ckpt_path")
    if not are_of_one_lineage(one.lineage for _, one in having):
        files = "; ".join(f"{site} has {one.described}" for site, one in having)
        raise ConfigurationError(
            f"the founders' checkpoints are of different runs: {files}; none of these runs descends from all the "
            "others: keep the files of one, and start the other sites without ckpt_path: they get it"
        )
    for site, one in having:
        if one.problem:
            raise ConfigurationError(
                f"{one.path} at {site} was saved with {one.problem}; set it as it was, or load the weights into the "
                "module to begin a new run with them"
            )


def _say_what_yields(told: Sequence[_Told], source: int, founders: Sequence[str]) -> None:
    older = [
        f"{one.described} ({site})"
        for site, one in zip(founders, told, strict=True)
        if one.lineage and one.lineage != told[source].lineage
    ]
    if older:
        rank_zero_info(
            f"parablock: the run continues from {told[source].described} ({founders[source]}); not used, since that "
            f"run descends from the one that saved it: {'; '.join(older)}"
        )
