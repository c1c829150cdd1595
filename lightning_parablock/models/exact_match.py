"""Exact match as GSM8K defines it: the number after ``####`` in the completion equals the one in the answer."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

_FINAL = re.compile(r"####\s*\$?\s*([-+]?(?:\d[\d,]*\.?\d*|\.\d+))")


def final_number(text: str) -> Decimal | None:
    """First number after ``####``, without commas; None if there is none (arXiv 2110.14168)."""
    found = _FINAL.search(text)
    return None if found is None else Decimal(found[1].replace(",", "").rstrip("."))


class ExactMatch(Metric):
    """Share of the examples whose completion ends in the answer's number; adds up over batches and ranks."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    matches: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_state = cast(Any, self).add_state
        for name in ("matches", "count"):
            add_state(name, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, completion: str, answer: str) -> None:
        """Add one example.

        Raises:
            ValueError: the answer has no final number to compare with.
        """
        wanted = final_number(answer)
        if wanted is None:
            raise ValueError(f"the answer {answer!r:.80} has no number after ####")
        self.matches = self.matches + int(final_number(completion) == wanted)
        self.count = self.count + 1

    def compute(self) -> Tensor:
        """Share in [0, 1], float32 scalar; NaN if there was no example."""
        return (self.matches / self.count).float()
