"""Start a scenario of :mod:`tests.distributed.scenarios` in two real processes, as torchrun would."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit code (negative: the signal) and output of one rank."""

    code: int
    output: str


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    scenario: str, folder: Path, *arguments: str, world_size: int = 2, timeout: float = 300
) -> list[Ended]:
    """Run a scenario on ``world_size`` processes that communicate over a free port.

    Args:
        scenario: a function of :mod:`tests.distributed.scenarios`.
        folder: where the scenario writes; its first argument.
        arguments: its other arguments.
        world_size: number of processes.
        timeout: seconds after which each process still running is killed and the test fails.

    Returns:
        The result of each rank, in order.
    """
    port = free_port()
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    command = [sys.executable, "-m", "tests.distributed.scenarios", scenario, str(folder), *arguments]
    processes = []
    for rank in range(world_size):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        output = (folder / f"{scenario}-{rank}.txt").open("w+b")
        processes.append(
            (subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output), output)
        )
    try:
        for process, _ in processes:
            process.wait(timeout)
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()
    ended = []
    for process, output in processes:
        output.seek(0)
        ended.append(Ended(process.returncode, output.read().decode(errors="replace")))
        output.close()
    return ended


def launch_all(scenario: str, folder: Path, *arguments: str, world_size: int = 2) -> None:
    """Run a scenario, and check that every rank succeeds."""
    for rank, ended in enumerate(launch(scenario, folder, *arguments, world_size=world_size)):
        assert ended.code == 0, f"rank {rank} ended with {ended.code}:\n{ended.output}"
