"""Errors of hosts and their cluster."""

from __future__ import annotations


class HostsError(RuntimeError):
    """A cluster that cannot be opened, or a command to it that failed."""


class HostsTimeoutError(HostsError, TimeoutError):
    """Something did not happen within its time limit."""
