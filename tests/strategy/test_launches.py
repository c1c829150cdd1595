"""Every launcher, for real: its run has the bits of one whose variables a torchrun would have set."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from benchmarks.hosts import HostCluster
from benchmarks.hosts.network import address
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli import main
from lightning_parablock.errors import PeerLostError
from lightning_parablock.launching import launcher
from lightning_parablock.launching.launched import adopt_mpi
from tests.support.launch import LIMIT_S, ROOT, rank_environment, run_ranks

SCRIPT = "tests/strategy/unaware_train.py"
SCRIPT_FIT = ["fit", "--strategy", "fedbcd", "--strategy.local_steps", "4", "--strategy.blocks", "2"]
TOYS = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]
FIT = ["fit", *TOYS, "--strategy", '{"init_args": {"blocks": 2, "local_steps": 4}}', "--trainer.accelerator", "cpu"]
SHORT = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "14"]
ENDLESS = ["--model.sleep_s", "0.05", "--trainer.max_steps", "100000", "--validate_before_and_after", "false"]
SAVE = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "14"]
KEEP = ["--trainer.callbacks.save_top_k", "-1"]
SAVE_TO = "--trainer.callbacks.dirpath"
FROM_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "TORCHELASTIC_RUN_ID",
)


def weights_in(folder: Path) -> dict[str, Tensor]:
    """W after step 14."""
    (saved,) = folder.glob("*step=14.ckpt")
    return torch.load(saved, weights_only=True)["state_dict"]


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def of_command(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """W of the command line's run at step 14, under torchrun's variables."""
    folder = tmp_path_factory.mktemp("reference")
    args = [*FIT, *SHORT, *SAVE, SAVE_TO, str(folder / "ckpt"), "--trainer.default_root_dir", str(folder)]
    run_ranks(2, ["-m", "lightning_parablock", *args])
    return weights_in(folder / "ckpt")


@pytest.fixture(scope="module")
def of_script() -> str:
    """What the script says of its settings and weights, under torchrun's variables."""
    args = [SCRIPT, *SCRIPT_FIT, *SHORT, "--trainer.devices", "2"]
    outputs = run_ranks(2, ["-m", "lightning_parablock", *args])
    first, second = (re.findall("settings .*", output) for output in outputs)
    assert first == second
    (said,) = first
    assert said.startswith("settings 0 4 hash")
    return said


def without_torchrun(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    found = rank_environment(rank, n_ranks, port)
    return {name: value for name, value in found.items() if name not in FROM_LAUNCHERS}


# --- started as users start them --------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*args: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """``lightning-parablock ARGS`` in a process group of its own, as a terminal has it, with its output in a file.

    Its ranks share the file. Their output is buffered: a line printed and flushed is written in one piece.
    """
    environment = without_torchrun(0, 1, 0)
    environment.pop("MASTER_PORT")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "lightning_parablock", *args],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield process, log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


def nobody_is_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def start_nodes(cluster: HostCluster, root: Path) -> None:
    """A torchrun on each host, which finds the other one by c10d."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address(0)}:29500", "--rdzv-id", "fit"]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    fit = ["-m", "lightning_parablock", *FIT, *ENDLESS, *SAVE, *KEEP, SAVE_TO, str(root / "nodes")]
    unset = [f"--unset={name}" for name in (*FROM_LAUNCHERS, "MASTER_ADDR", "MASTER_PORT")]
    for host in range(cluster.n):
        command = [sys.executable, *torchrun, "--local-addr", address(host), *fit]
        folder = ["--trainer.default_root_dir", str(root / f"host{host}")]
        cluster.start(host, ["env", *unset, *command, *folder], env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Three at once, since most of their time goes into imports.

    A script and a command, one rank of which fails, under Lightning's launcher; a command on two nodes under torchrun.
    """
    root = tmp_path_factory.mktemp("launched")
    two = [*SHORT, "--trainer.devices", "2"]
    go_on = ["--model.go_on", "true", "--trainer.default_root_dir", str(root / "script")]
    script = [SCRIPT, *SCRIPT_FIT, *two, *go_on]
    fails = ["--model.fail_at_step", "6", "--model.fail_on_rank", "1", "--validate_before_and_after", "false"]
    failing = [*FIT, *two, *fails, "--trainer.default_root_dir", str(root / "failing")]
    with HostCluster(2) as cluster:
        start_nodes(cluster, root)
        with started(*script) as one, started(*failing) as other:
            yield {"script": one, "failing": other, "cluster": cluster, "root": root}


def test_a_script_has_the_same_bits_and_ctrl_c_ends_all_of_it(launched: dict[str, Any], of_script: str) -> None:
    process, log = launched["script"]
    wait_for(log, r"step 6\n(.*\n)*step 6\n", process)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(LIMIT_S)
    text = log.read_text()
    assert code == 1, text  # what Lightning makes of Ctrl-C
    assert nobody_is_left(process.pid)
    assert re.findall("settings .*", text) == [of_script] * 2


def test_one_failed_rank_ends_all_of_them(launched: dict[str, Any]) -> None:
    process, log = launched["failing"]
    code = process.wait(LIMIT_S)
    text = log.read_text()
    assert code == 1, text
    assert nobody_is_left(process.pid)
    assert re.search(r"error: the toy broke", text), text
    assert re.search(r"error: .*client 1 \(rank 1 on .*\) ended on an error of its own: .*the toy broke", text), text
    (folder,) = (launched["root"] / "failing").iterdir()
    assert "client 1" in json.loads((folder / "manifest.json").read_text())["state"]


def test_two_nodes_under_torchrun_have_the_same_bits_and_ctrl_c_ends_all_of_it(
    launched: dict[str, Any], of_command: dict[str, Tensor]
) -> None:
    cluster: HostCluster = launched["cluster"]
    cluster.wait_for_line(0, r"round 4 \(", timeout_s=LIMIT_S)
    for host in range(2):
        cluster.hosts[host].send_signal(signal.SIGINT)
    codes = cluster.wait(timeout_s=LIMIT_S)
    logs = [cluster.hosts[host].log_text() for host in range(2)]
    assert codes == [1, 1], logs  # torchrun's own
    for log in logs:
        assert "interrupted: Ctrl-C" in log, logs
    assert_same_bits(weights_in(launched["root"] / "nodes"), of_command)


# --- the variables of other launchers ---------------------------------------------------------------------------------


def slurm(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    ranks = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}
    sizes = {"SLURM_NTASKS": n_ranks, "SLURM_NTASKS_PER_NODE": n_ranks, "SLURM_NNODES": 1, "SLURM_JOB_ID": 4711}
    numbers = {name: str(value) for name, value in (ranks | sizes).items()}
    return {**without_torchrun(rank, n_ranks, port), **numbers, "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "fit"}


def open_mpi(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "SIZE": n_ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": n_ranks}
    mpi = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in numbers.items()}
    return {**without_torchrun(rank, n_ranks, port), **mpi}


@pytest.mark.parametrize("environment_of", [slurm, open_mpi])
def test_srun_and_mpirun(tmp_path: Path, of_command: dict[str, Tensor], environment_of: Any) -> None:
    args = [*FIT, *SHORT, *SAVE, SAVE_TO, str(tmp_path / "ckpt"), "--trainer.default_root_dir", str(tmp_path / "runs")]
    run_ranks(2, ["-m", "lightning_parablock", *args], environment_of=environment_of)
    assert_same_bits(weights_in(tmp_path / "ckpt"), of_command)
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["clients"] == 2


@pytest.mark.parametrize("environment_of", [slurm, open_mpi])
def test_a_script_under_srun_and_mpirun(of_script: str, environment_of: Any) -> None:
    args = [SCRIPT, *SCRIPT_FIT, *SHORT, "--trainer.devices", "2"]
    outputs = run_ranks(2, ["-m", "lightning_parablock", *args], environment_of=environment_of)
    assert [re.findall("settings .*", output) for output in outputs] == [[of_script], [of_script]]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_notebook(tmp_path: Path, devices: int) -> None:
    weights: dict[str, dict[str, Tensor]] = {}
    for name, n_ranks, environment_of in (("script", devices, rank_environment), ("notebook", 1, without_torchrun)):
        args = ["-m", "tests.strategy.worker_notebook", str(tmp_path / name), str(devices)]
        run_ranks(n_ranks, args, environment_of=environment_of)
        weights[name] = torch.load(tmp_path / name, weights_only=True)
    assert_same_bits(weights["notebook"], weights["script"])


# --- what the launcher does, in this process --------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that the launcher has started."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.exit(int(sys.stdin.readline()))"], stdin=-1
    )
    launcher._started.append(process)
    yield process
    launcher._started.clear()
    process.kill()
    process.communicate()


@pytest.fixture
def meeting() -> Iterator[Callable[[], None]]:
    """A wait for clients that never come."""
    over = threading.Event()
    yield lambda: print(over.wait(LIMIT_S))
    over.set()
    for thread in threading.enumerate():
        if thread.name == "parablock-meeting":
            thread.join()


def test_a_process_that_ends_before_the_clients_have_met_is_named(
    other: subprocess.Popen[bytes], meeting: Callable[[], None]
) -> None:
    assert other.stdin is not None
    other.stdin.write(b"7\n")
    other.stdin.flush()
    with pytest.raises(PeerLostError, match=r"local rank 1 ended with exit code 7 before the clients had met"):
        launcher.while_others_live(meeting)


def test_a_process_whose_starter_is_gone_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, meeting: Callable[[], None]
) -> None:
    monkeypatch.setattr(launcher, "_starter", "1")
    with pytest.raises(PeerLostError, match="the process that started this one ended"):
        launcher.while_others_live(meeting)


def test_an_error_of_the_meeting_is_its_own(other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ZeroDivisionError):
        launcher.while_others_live(lambda: print(1 / 0))


def test_one_that_does_not_end_by_itself_is_killed(other: subprocess.Popen[bytes]) -> None:
    launcher.end_others(limit_s=0.0)
    assert other.returncode == -signal.SIGKILL
    assert launcher._started == []


@pytest.mark.parametrize(
    ("rank", "size", "local_rank", "local_size", "said"),
    [(1, 4, 0, 2, "--map-by slot"), (2, 3, 0, 2, "same number of ranks"), (0, 4, 0, 2, "MASTER_ADDR=HOST")],
)
def test_what_mpirun_cannot_do(
    monkeypatch: pytest.MonkeyPatch, rank: int, size: int, local_rank: int, local_size: int, said: str
) -> None:
    numbers = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
    for name, value in numbers.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    for name in (*FROM_LAUNCHERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=said):
        adopt_mpi()
    assert "LOCAL_RANK" not in os.environ


def test_start_methods_that_would_go_wrong_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start_method must be one of 'popen', 'spawn', 'fork', got 'forkserver'"):
        ParaBlockStrategy(start_method="forkserver")  # type: ignore[arg-type]
    args = [*FIT, "--strategy.start_method", "fork", "--trainer.devices", "2", "--run_dir", str(tmp_path / "run")]
    assert main(args) == 2
    assert "leave start_method at 'popen'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_script_that_is_not_there_or_fails(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LightningCLI, "parse_arguments", LightningCLI.parse_arguments)  # put back what a script changes
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    script = tmp_path / "train.py"
    script.write_text("import sys\nassert sys.path[0] == sys.argv[1], sys.path\nsys.exit(int(sys.argv[2]))\n")
    assert main([str(tmp_path / "tarin.py")]) == 2
    assert f"tarin.py' does not exist; did you mean '{script}'?" in capfd.readouterr().err
    assert main([str(script), str(tmp_path), "3"]) == 3
    assert main([str(script), str(tmp_path), "0"]) == 0
    assert main([str(script), str(tmp_path), "x"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{script}", line 3, in <module>'
    assert lines[-1].startswith("ValueError: invalid literal for int()")
