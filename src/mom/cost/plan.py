"""Plan a training on a cluster: memory of each device, time of a step, days, and energy, by DDP and by FSDP.

A roofline: an operation takes the longest of its matmuls' FLOPs, its bytes of memory, and a least time. docs/scaling.md
lists what it assumes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from mom.config.cluster import ClusterConfig
from mom.config.training import TrainerConfig
from mom.cost.machine import matmul_dtype, weight_dtype
from mom.cost.trace import Operation, StepTrace, trace_step
from mom.cost.units import unit_sizes
from mom.model import MoMConfig

Strategy = Literal["ddp", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp")

USABLE_MEMORY = 0.95
"""Fraction of a device's memory for tensors; libraries and fragmentation take the rest."""

_TRACED_TOKENS = 4096
"""Tokens of a device above which memory grows evenly with them."""

_TOKEN_BYTES = 2
_OPTIMIZER_PASSES = 10
"""Numbers that clipping and a fused AdamW read or write for each parameter: 3, and 4 read with 3 written."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan for one model and one strategy. Memory is in bytes of each device, times are seconds.

    Attributes:
        parameters: weights that stay.
        gradients: gradients at the peak.
        optimizer: AdamW's state.
        communication_buffers: DDP's buckets, or FSDP's gathered weights and gradients.
        activations: tensors kept for the backward pass and buffers, at the peak.
        fits: whether their sum is within :data:`USABLE_MEMORY`.
        largest_batch: largest number of sequences of a device that fits; 0 if none does.
        compute: forward and backward passes, and the optimizer.
        communication: communication that the computation does not hide.
        data: reading tokens.
        tokens: tokens of an optimizer step on all devices.
        days: of all steps.
        megawatt_hours: of all devices; None if their power is unknown.
    """

    parameters: float
    gradients: float
    optimizer: float
    communication_buffers: float
    activations: float
    fits: bool
    largest_batch: int
    compute: float
    communication: float
    data: float
    tokens: int
    days: float
    megawatt_hours: float | None

    @property
    def memory(self) -> float:
        """Bytes of a device at the peak."""
        parts = (self.parameters, self.gradients, self.optimizer, self.communication_buffers)
        return sum(parts) + self.activations

    @property
    def step(self) -> float:
        """Seconds of an optimizer step."""
        return self.compute + self.communication + self.data


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans the training of a model on a cluster.

    Args:
        config: the model's configuration.
        cluster: the devices.
        batch_size: sequences of a device in a micro-batch.
        length: tokens of a sequence.
        trainer: precision, gradient accumulation, checkpointing, and the number of steps.
        num_tokens: tokens to train on; None: those of ``trainer.max_steps`` steps.
    """

    config: MoMConfig
    cluster: ClusterConfig
    batch_size: int
    length: int
    trainer: TrainerConfig
    num_tokens: float | None = None

    def plans(self) -> dict[Strategy, Plan]:
        """Return the plan of each strategy."""
        trace = self._trace(self.batch_size)
        return {strategy: self._plan(strategy, trace) for strategy in STRATEGIES}

    def _trace(self, batch_size: int) -> StepTrace:
        trainer = self.trainer
        checkpointing = trainer.activation_checkpointing
        return trace_step(
            self.config, batch_size, self.length, trainer.precision, checkpointing=checkpointing
        )

    def _plan(self, strategy: Strategy, trace: StepTrace) -> Plan:
        memory = self._memory(strategy, trace)
        tokens = self.batch_size * self.length * self.trainer.accumulate_grad_batches
        tokens *= self.cluster.num_devices
        times = self._times(strategy, trace)
        steps = self.trainer.max_steps if self.num_tokens is None else self.num_tokens / tokens
        seconds = steps * sum(times.values())
        power = self.cluster.power_watts
        return Plan(
            **memory,
            fits=sum(memory.values()) <= self._usable,
            largest_batch=self._largest_batch(strategy),
            **times,
            tokens=tokens,
            days=seconds / 86_400,
            megawatt_hours=None if power is None else power * self.cluster.num_devices * seconds / 3.6e9,
        )

    @property
    def _usable(self) -> float:
        return USABLE_MEMORY * self.cluster.memory_gb * 1e9

    def _largest_batch(self, strategy: Strategy) -> int:
        """Return the largest batch that fits, by the growth of memory from the batch to a larger one."""

        def needed(batch_size: int) -> float:
            return sum(self._memory(strategy, self._trace(batch_size)).values())

        low = self.batch_size
        high = max(2 * low, _TRACED_TOKENS // self.length)
        each = (needed(high) - needed(low)) / (high - low)
        return max(0, high + int((self._usable - needed(high)) // each))

    def _memory(self, strategy: Strategy, trace: StepTrace) -> dict[str, float]:
        """Return the bytes of a device at the peak of a step, by part."""
        size = weight_dtype(self.trainer.precision).itemsize
        root, *units = (count * size for count in unit_sizes(self.config))
        weights, largest = root + sum(units), max(units, default=0)
        shards = 1 if strategy == "ddp" else self.cluster.num_devices
        if strategy == "ddp":
            # The buckets hold all gradients once more, unless there is nothing to reduce.
            buffers = trace.gradients if self.cluster.num_devices > 1 else 0.0
        else:
            # The root stays gathered; units are gathered one ahead, and their gradients reduced in a copy.
            buffers = float(root + 2 * largest) if shards > 1 else 0.0
        return {
            "parameters": weights / shards,
            "gradients": trace.gradients_at_peak / shards,
            "optimizer": 2 * weights / shards,
            "communication_buffers": buffers,
            "activations": trace.activations_at_peak,
        }

    def _times(self, strategy: Strategy, trace: StepTrace) -> dict[str, float]:
        """Return the seconds of an optimizer step, by part."""
        cluster, accumulate = self.cluster, self.trainer.accumulate_grad_batches
        rate = cluster.efficiency * cluster.flops(str(matmul_dtype(self.trainer.precision)).split(".")[1])
        bandwidth = cluster.efficiency * cluster.memory_bandwidth * 1e9
        least = cluster.operation_microseconds * 1e-6

        def seconds(operation: Operation) -> float:
            shortest = 0.0 if operation.grouped else least
            return max(operation.flops / rate, operation.bytes / bandwidth, shortest)

        passes = trace.total(seconds)
        backward = trace.total(lambda operation: seconds(operation) if operation.backward else 0.0)
        weights = sum(unit_sizes(self.config)) * weight_dtype(self.trainer.precision).itemsize
        num = cluster.num_devices
        shards = 1 if strategy == "ddp" else num
        update = _OPTIMIZER_PASSES * weights / shards / bandwidth
        share = (num - 1) / num / self._link()
        if strategy == "ddp":
            # A ring sends all gradients twice, behind the last backward pass.
            communication = max(0.0, 2 * trace.gradients * share - backward)
        else:
            # Weights are gathered for each pass, and gradients reduced, behind the passes.
            sent = (2 * accumulate * weights + trace.gradients) * share
            communication = max(0.0, sent - accumulate * passes)
        tokens = self.batch_size * self.length * accumulate * min(num, cluster.devices_per_node)
        return {
            "compute": accumulate * passes + update,
            "communication": communication,
            "data": tokens * _TOKEN_BYTES / (cluster.data_bandwidth * 1e9),
        }

    def _link(self) -> float:
        """Return the bytes per second of the slowest connection of a ring through all devices."""
        cluster = self.cluster
        rates = [cluster.bandwidth_within_node]
        if cluster.num_nodes > 1 and cluster.bandwidth_between_nodes is not None:
            rates.append(cluster.bandwidth_between_nodes)
        return cluster.efficiency * min(rates) * 1e9
