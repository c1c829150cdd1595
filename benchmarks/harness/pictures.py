"""Draws <question>.png from <question>.json; every ``<question>/picture.py`` has a ``draw(values) -> Figure``.

python -m benchmarks.harness.pictures quality overlap
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import matplotlib

from benchmarks.harness.results import RESULTS, read_result

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUESTIONS = sorted(path.parent.name for path in Path(__file__).resolve().parents[1].glob("*/picture.py"))


def main() -> None:
    """Draw the named questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=QUESTIONS, help="which results to draw")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results are")
    options = parser.parse_args()
    for question in options.questions:
        print(draw(question, options.folder).name)


def draw(question: str, folder: Path = RESULTS) -> Path:
    """Draw ``folder/<question>.png`` from ``folder/<question>.json`` and return its path."""
    values = read_result(folder / f"{question}.json")["values"]
    figure = importlib.import_module(f"benchmarks.{question}.picture").draw(values)
    path = folder / f"{question}.png"
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
