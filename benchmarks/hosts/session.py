"""The caller's side of a cluster: opens the private namespaces and talks to the supervisor inside them."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hosts.errors import HostsError, HostsTimeoutError

ANSWER_LIMIT_S = 60.0
CLOSE_LIMIT_S = 10.0
_NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_AS_USER = ["--user", "--map-root-user"]
_NEEDS = (
    "namespaced hosts need Linux with the commands unshare (util-linux), ip and tc (iproute2), iptables for hosts "
    "behind routers, and either root or user namespaces (sysctl user.max_user_namespaces > 0, no AppArmor or seccomp "
    "rule against them)"
)


class Session:
    """One supervisor and the pipe to it. Thread-safe: one command at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._lock = threading.Lock()
        self._pid_namespace = 0

    @classmethod
    def open(
        cls,
        rates: Sequence[str | None],
        *,
        pin: bool,
        directory: Path,
        temporary: bool,
        behind_nat: Collection[int] = (),
    ) -> Session:
        """Open namespaces as root, or as the root of a user namespace; a ``temporary`` directory is removed with them.

        Raises HostsError with the reason.
        """
        needed = ("unshare", "ip", "tc", *(["iptables"] if behind_nat else []))
        missing = [name for name in needed if shutil.which(name) is None]
        if sys.platform != "linux" or missing:
            raise HostsError(f"{_NEEDS}; this machine is {sys.platform}, missing: {', '.join(missing) or 'none'}")
        reasons: list[str] = []
        for prefix in ([], _AS_USER) if os.geteuid() == 0 else (_AS_USER,):
            options = {"rates": list(rates), "behind_nat": sorted(behind_nat), "pin": pin, "temporary": temporary}
            session = cls._launch([*prefix, *_NAMESPACES], options, directory)
            try:
                session._pid_namespace = session._answer()
                return session
            except HostsError as error:
                session.close()
                reasons.append(f"{' '.join(['unshare', *prefix, *_NAMESPACES[:3]])}: {error}")
        raise HostsError(f"{_NEEDS}; tried " + "; ".join(reasons))

    @classmethod
    def _launch(cls, flags: list[str], options: dict[str, Any], directory: Path) -> Session:
        log = directory / "supervisor.log"
        root = str(Path(__file__).resolve().parents[2])
        starter = os.pidfd_open(os.getpid())  # becomes readable in there once this process is gone, even after SIGKILL
        options |= {"directory": str(directory), "starter": starter}
        try:
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    ["unshare", *flags, sys.executable, "-m", "benchmarks.hosts.supervisor", json.dumps(options)],
                    env={**os.environ, "PYTHONPATH": root},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    pass_fds=(starter,),
                    start_new_session=True,  # Ctrl-C should reach the caller only, which then closes in order
                )
        finally:
            os.close(starter)
        return cls(process, log)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one command and return its answer. Raises HostsError."""
        assert self._process.stdin is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
                self._process.stdin.flush()
            except (OSError, ValueError) as error:
                raise HostsError(f"{do}: the cluster is closed ({error}); {self._last_words()}") from error
            return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise HostsTimeoutError(f"the cluster's supervisor gave no answer within {ANSWER_LIMIT_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise HostsError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise HostsError(answer["error"])
        return answer["ok"]

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        return text[-1000:] or "its supervisor ended without a word"

    def close(self) -> None:
        """End all processes of all hosts and free the network; returns when they are gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            if not self._process.stdin.closed:
                self._process.stdin.close()
            try:
                self._process.wait(CLOSE_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # --kill-child kills the supervisor, too, and with it the namespace
                self._process.wait(CLOSE_LIMIT_S)
            self._process.stdout.close()

    def outer_pid(self, inner_pid: int) -> int | None:
        """The pid in the caller's process namespace of the process that has ``inner_pid`` in the cluster's."""
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == self._pid_namespace:
                    status = Path(f"/proc/{entry}/status").read_text()
                    pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                    if int(pids[-1]) == inner_pid:
                        return int(entry)
            except OSError:  # it ended in the meantime, or belongs to another user
                continue
        return None
