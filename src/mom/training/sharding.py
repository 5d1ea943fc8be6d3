"""Fully sharded training: each process has a shard of the weights, gradients, and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Module
from transformers import PreTrainedModel

from mom.model.assembly import Stage
from mom.model.blocks import Block
from mom.runs.directory import process_rank


class FullyShardedStrategy(ModelParallelStrategy):
    """PyTorch's FSDP2 over all processes, with a single checkpoint file that any number of processes can load.

    Lightning's strategy shards across machines and uses tensor parallelism within each; here every process has its own
    shard.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Start the process group with one shard per process."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


@contextmanager
def initialized_once(strategy: str) -> Iterator[None]:
    """Under ``fsdp``, let only the first process allocate weights for models built in this context.

    The other processes use PyTorch's meta device, which stores no data; :func:`shard` later sends them their shards of
    the first process's weights.

    Args:
        strategy: ``trainer.strategy``.
    """
    if strategy == "fsdp" and process_rank() > 0:
        with torch.device("meta"):
            yield
    else:
        yield


def shard(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Shard a model in place over ``mesh``: block by block and stage by stage, then the remaining parameters.

    The weights of a block or stage are gathered when it runs and freed afterwards; a stage is one unit, because all
    of its rounds use the same weights.

    The model moves to the meta device before any shard is allocated; then the first process broadcasts its weights
    tensor by tensor. So only the first process ever has the full model in memory (:func:`initialized_once`), and no
    device does.

    Args:
        model: on the CPU; on all processes but the first it may be on the meta device.
        mesh: a one-dimensional mesh of all processes.
        device: the device of this process's shards.
    """
    is_first = dist.get_rank() == 0
    weights = model.state_dict() if is_first else {}
    buffers = dict(model.named_buffers())
    Module.to(model, "meta")
    model.tie_weights()
    for kind in (Block, Stage):
        for part in model.modules():
            if isinstance(part, kind):
                fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    model.tie_weights()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
    for name, buffer in model.named_buffers():  # non-persistent buffers are not in the state dict
        if is_first:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)


def is_sharded(model: Module) -> bool:
    """Return whether this process has only a shard of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
