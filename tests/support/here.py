"""Which rank of a launch this process is, and where it may write; in pytest's own process, the only one of none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

RANK, N_RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
SCRATCH = Path(os.environ.get("SCRATCH", tempfile.gettempdir()))
