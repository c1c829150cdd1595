"""Fits in this process: one thread, and no trace of Lightning's environment variables afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest

from tests.support.threads import on_one_thread


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    variables = dict(os.environ)
    with on_one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals
        yield
    os.environ.clear()
    os.environ.update(variables)
