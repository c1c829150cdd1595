"""A federation of the benchmark's hosts: new keys and a roster that all sites have signed, for one run."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.hosts import address
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import encoded
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import RosterSite

FILE_NAME = "federation.yaml"
_RANGE = "10.77.0.0/24"
_PORT = 51820


def site_name(rank: int) -> str:
    """The site of a rank."""
    return f"site{rank}"


@contextmanager
def new_federation(sites: int) -> Generator[Path]:
    """A folder with :data:`FILE_NAME` and a folder of keys for every site, until the end of the ``with`` statement.

    Its inner addresses are those of the hosts, without WireGuard: what is measured is the secure sum. Sites that have
    contributed to a sum draw other batches in their next run, so each run gets new ones, and all runs of a seed train
    on the same batches.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        made = [_site(folder, rank) for rank in range(sites)]
        records = (RosterSite(one.card, address(rank), None) for rank, one in enumerate(made))
        roster = Roster("bench", 1, None, None, _RANGE, None, _PORT, tuple(records))
        signed = roster.with_signatures({one.card.name: encoded(one.sign(roster.signed_bytes)) for one in made})
        (folder / FILE_NAME).write_text(signed.text)
        yield folder


def _site(folder: Path, rank: int) -> Identity:
    name = site_name(rank)
    identity = Identity.create(folder / name, name, f"{address(rank)}:{_PORT}")
    Submissions.create(identity.folder)
    return identity
