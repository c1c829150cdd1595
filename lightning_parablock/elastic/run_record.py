"""A file in which a site notes the run that it takes part in, so that it never founds the same run a second time.

A site that has started a round and then lost everything may come back to the run, or continue it from a checkpoint. If
it were allowed to found it again, a site that is alone for a moment would start from scratch, and its model would
replace that of the others (docs/method.md, "The rules", rule 1).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from lightning_parablock.errors import ParaBlockError
from lightning_parablock.regroup.lineage import Lineage
from lightning_parablock.system.reading import reading


class RunRecord:
    """The note of one site.

    Args:
        path: Of the file; None to note nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def lineage(self) -> Lineage:
        """The runs from which the run descends that the site has started and not finished, and that run last.

        Empty for none.
        """
        if self.path is None or not self.path.exists():
            return ()
        with contextlib.suppress(ParaBlockError, OSError), reading(str(self.path)):  # a torn or foreign file
            said: dict[str, Any] = json.loads(self.path.read_text())
            return (*(str(run) for run in said.get("ancestors", ())), str(said["run"]))
        return ("unknown",)

    def write(self, run: str, ancestors: Lineage = ()) -> None:
        """The site starts a round of a run.

        Args:
            run: Its id.
            ancestors: Ids of the runs from which it descends, oldest first.
        """
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"run": run, "ancestors": ancestors}) + "\n")

    def forget(self) -> None:
        """The run has ended as it should."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def advice(self) -> str:
        """What to do where no site of the run is left."""
        return (
            "where no site of it is left, continue from its newest checkpoint with ckpt_path, or delete "
            f"{self.path} to begin a new run"
        )
