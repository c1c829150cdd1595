"""Network namespaces as file descriptors, and commands that run inside them.

Used only by the supervisor and what it runs, in private namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess

CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this process into new namespaces of the given kinds. Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def enter_network(fd: int) -> None:
    """Move this process into the network namespace behind ``fd``. Raises OSError."""
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def new_network_namespace() -> int:
    """A network namespace without links, as a file descriptor. Raises OSError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        unshare(CLONE_NEWNET)
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter_network(home)
    finally:
        os.close(home)
    return fd


def run(command: str, namespace: int | None = None, *, keep: int | None = None) -> str:
    """Run one command, its words quoted as in a shell, inside the network namespace behind an fd if given.

    Returns what it printed.
    """
    done = subprocess.run(
        shlex.split(command),
        capture_output=True,
        text=True,
        timeout=30,
        pass_fds=() if keep is None else (keep,),
        preexec_fn=None if namespace is None else lambda: enter_network(namespace),  # single-threaded: safe
    )
    if done.returncode:
        raise RuntimeError(f"`{command}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _check(status: int, call: str) -> None:
    if status:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
