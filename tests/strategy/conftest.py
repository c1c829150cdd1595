"""Every test here fits in this process."""

from tests.support.in_process import as_found

__all__ = ["as_found"]
