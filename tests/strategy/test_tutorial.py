"""The tutorial's code cells run in order, and show what its text says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.launch import LIMIT_S, ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "first-federation.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def shares(output: str, label: str) -> list[float]:
    """The three accuracies that a cell prints after its label."""
    found = re.search(rf"^{label}: (.*)$", output, re.MULTILINE)
    assert found is not None, output
    return [float(share) for share in re.findall(r"\d\.\d+", found[1])]


def test_a_federation_of_three_sites_learns_what_one_site_cannot(tmp_path: Path) -> None:
    script = tmp_path / "first_federation.py"
    script.write_text("\n".join("".join(cell["source"]) + "\n" for cell in code_cells()), encoding="utf-8")
    # With as many threads as a notebook has: forked processes would wait for those of their parent.
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**own, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]

    own, *others = shares(done.stdout, "site 0 alone")
    assert own > 0.9 and max(others) < 0.75
    assert min(shares(done.stdout, "three sites together")) > 0.85
    assert "there is 1 client, so nothing is exchanged" in done.stderr
    records = re.findall(r"^round (\d)  client (\d)  (\S+)  8 steps  128 samples  drift", done.stdout, re.MULTILINE)
    assert [record[:2] for record in records] == [(r, c) for r in "01" for c in "012"]
    assert len({record[2] for record in records[:3]}) == 1
    assert re.search(r"^[0-9a-f]{64}$", done.stdout, re.MULTILINE)
    assert "the same weights, bit for bit: True" in done.stdout
    (picture,) = tmp_path.glob("*/timeline.png")
    assert picture.stat().st_size > 10_000


def test_the_notebook_has_no_outputs_that_could_be_stale() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
