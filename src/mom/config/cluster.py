"""Options of the ``cluster`` group: the devices that ``task=cost`` plans for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mom.config.checks import conform, in_range, known_names
from mom.config.section import Section
from mom.errors import UsageError

_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Devices of one kind, and the connections between them. Bandwidths are GB/s (1e9 bytes), in each direction.

    Args:
        num_devices: devices in total.
        devices_per_node: devices of a machine.
        tflops: dense matmuls of one device, TFLOP/s by precision (``float64``, ``float32``, ``bfloat16``,
            ``float16``).
        memory_gb: memory of one device, in GB.
        memory_bandwidth: of one device to its memory.
        bandwidth_within_node: of one device to the others in its node.
        bandwidth_between_nodes: of one device to other nodes.
        data_bandwidth: of a node to its training data.
        power_watts: power of one device; None estimates no energy.
        efficiency: fraction of the FLOP/s and bandwidths that programs reach.
        operation_microseconds: the least time that an operation takes.
    """

    group: ClassVar[str] = "cluster"

    num_devices: int
    devices_per_node: int
    memory_gb: float
    memory_bandwidth: float
    bandwidth_within_node: float
    tflops: dict[str, Any] = field(default_factory=dict)
    bandwidth_between_nodes: float | None = None
    data_bandwidth: float = 1.0
    power_watts: float | None = None
    efficiency: float = 0.7
    operation_microseconds: float = 5.0

    def _check(self) -> None:
        self._range("num_devices devices_per_node", ge=1)
        self._range("memory_gb memory_bandwidth bandwidth_within_node bandwidth_between_nodes", gt=0)
        self._range("data_bandwidth power_watts", gt=0)
        self._range("efficiency", gt=0, le=1)
        self._range("operation_microseconds", ge=0)
        known_names("cluster.tflops", self.tflops, _DTYPES)
        for name, value in self.tflops.items():
            in_range(f"cluster.tflops.{name}", conform(f"cluster.tflops.{name}", value, float), gt=0)
        if self.num_nodes > 1 and self.bandwidth_between_nodes is None:
            raise UsageError(
                f"cluster.bandwidth_between_nodes must be a number for {self.num_nodes} nodes, got null"
            )

    @property
    def num_nodes(self) -> int:
        """Machines, the last of which may be partly used."""
        return math.ceil(self.num_devices / self.devices_per_node)

    def flops(self, dtype: str) -> float:
        """Return the FLOP/s of one device's matmuls in a dtype, such as ``bfloat16``.

        Raises:
            UsageError: the cluster does not give them.
        """
        if dtype not in self.tflops:
            raise UsageError(
                f"cluster.tflops must have {dtype}, the precision of the matmuls, got {self.tflops}"
            )
        return float(self.tflops[dtype]) * 1e12
