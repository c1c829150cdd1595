"""README's first snippet runs on one machine exactly as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.launch import LIMIT_S, ROOT


def first_snippet() -> str:
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_first_snippet_runs_as_written_and_both_of_its_clients_train(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(first_snippet())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "`Trainer.fit` stopped: `max_steps=32` reached." in done.stderr
    assert "client 1: " in done.stderr + done.stdout
