"""Plans for clusters, compared with sums by hand."""

from __future__ import annotations

import dataclasses

import pytest

from mom.config.cluster import ClusterConfig
from mom.config.training import TrainerConfig
from mom.cost.estimate import num_parameters
from mom.cost.plan import USABLE_MEMORY, Planner
from mom.cost.trace import trace_step
from mom.cost.units import unit_sizes
from mom.errors import UsageError
from mom.model import MoMConfig

CONFIG = MoMConfig(vocab_size=512, d_model=64, num_heads=2, max_positions=64, num_rounds=2)
CLUSTER = ClusterConfig(
    num_devices=4,
    devices_per_node=2,
    tflops={"float32": 1.0},
    memory_gb=1.0,
    memory_bandwidth=100.0,
    bandwidth_within_node=10.0,
    bandwidth_between_nodes=1.0,
    power_watts=500.0,
    efficiency=0.5,
    operation_microseconds=0.0,
)


def plans(cluster: ClusterConfig = CLUSTER, batch_size: int = 2, **trainer):
    return Planner(CONFIG, cluster, batch_size, 64, TrainerConfig(max_steps=1000, **trainer)).plans()


def test_memory_of_each_device_by_part():
    weights, trace = 4 * num_parameters(CONFIG), trace_step(CONFIG, 2, 64, "32-true")
    ddp, fsdp = plans().values()
    assert (ddp.parameters, ddp.optimizer) == (weights, 2 * weights)
    assert (fsdp.parameters, fsdp.optimizer) == (weights / 4, 2 * weights / 4)
    assert ddp.communication_buffers == trace.gradients
    root, *units = unit_sizes(CONFIG)
    assert 4 * (root + sum(units)) == weights and len(units) == CONFIG.fixed_depth + CONFIG.num_stages
    assert fsdp.communication_buffers == 4 * (root + 2 * max(units))
    assert ddp.activations == fsdp.activations == trace.activations_at_peak


def test_a_step_takes_the_longest_of_flops_and_bytes_and_what_is_not_hidden():
    trace = trace_step(CONFIG, 2, 64, "32-true")
    ddp = plans()["ddp"]
    passes = trace.total(lambda operation: max(operation.flops / 0.5e12, operation.bytes / 50e9))
    assert ddp.compute == pytest.approx(passes + 40 * num_parameters(CONFIG) / 50e9)
    slow = dataclasses.replace(CLUSTER, bandwidth_between_nodes=1e-6)
    # Three of four parts are sent twice, over the slower connection.
    sent = 2 * trace.gradients * 3 / 4
    assert plans(slow)["ddp"].communication == pytest.approx(sent / 500, rel=0.01)
    assert ddp.tokens == 4 * 2 * 64
    assert ddp.days == pytest.approx(1000 * ddp.step / 86_400)
    assert ddp.megawatt_hours == pytest.approx(4 * 500 * 1000 * ddp.step / 3.6e9)


def test_the_largest_batch_fits_and_the_next_does_not():
    small = dataclasses.replace(CLUSTER, memory_gb=0.1)
    most = plans(small)["ddp"].largest_batch
    assert most > 2
    for batch_size, fits in ((most, True), (most + 2, False)):
        plan = plans(small, batch_size=batch_size)["ddp"]
        assert plan.fits == fits == (plan.memory <= USABLE_MEMORY * 0.1e9)


def test_a_cluster_that_lacks_a_number_is_rejected():
    with pytest.raises(
        UsageError, match=r"^cluster.tflops must have bfloat16, the precision of the matmuls, got"
    ):
        plans(precision="bf16-mixed")
    with pytest.raises(
        UsageError, match=r"^cluster.bandwidth_between_nodes must be a number for 2 nodes, got null"
    ):
        dataclasses.replace(CLUSTER, bandwidth_between_nodes=None)
    with pytest.raises(UsageError, match=r"^unknown option cluster.tflops.bfloat; did you mean"):
        dataclasses.replace(CLUSTER, tflops={"bfloat": 1.0})
    with pytest.raises(UsageError, match=r"^cluster.efficiency must be greater than 0 and at most 1, got 2"):
        dataclasses.replace(CLUSTER, efficiency=2.0)
