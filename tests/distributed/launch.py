"""Start a scenario of :mod:`tests.distributed.scenarios` in two real processes, as torchrun would."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.helpers.processes import ROOT, Ended, start, wait_for_all


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
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    line = ["-m", "tests.distributed.scenarios", scenario, str(folder), *arguments]
    processes = {}
    for rank in range(world_size):
        output = folder / f"{scenario}-{rank}.txt"
        processes[output] = start(line, ROOT, output, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
    return wait_for_all(processes, timeout)


def launch_all(scenario: str, folder: Path, *arguments: str, world_size: int = 2) -> None:
    """Run a scenario, and check that every rank succeeds."""
    for rank, ended in enumerate(launch(scenario, folder, *arguments, world_size=world_size)):
        assert ended.code == 0, f"rank {rank} ended with {ended.code}:\n{ended.output}"
