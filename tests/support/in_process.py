"""Fits in this process: one thread, and no trace of Lightning's environment variables afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    threads, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals
        yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(variables)
