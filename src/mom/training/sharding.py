"""Fully sharded training: every process keeps its share of weights, gradients and optimizer state."""

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
    """PyTorch's FSDP2 over all processes; one full checkpoint file, which any number of processes can load.

    Lightning's strategy shards over machines and splits tensors within one unless told how many of each;
    here every process holds one shard, however many there turn out to be.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Start the process group with one shard for each process."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


@contextmanager
def initialized_once(strategy: str) -> Iterator[None]:
    """Inside, a model is built with weights on the first process only, if ``strategy`` shares them out.

    On the others it is built on PyTorch's meta device, which knows shapes and holds nothing; :func:`shard`
    gives them their share of the first one's weights.

    Args:
        strategy: of the ``trainer`` group.
    """
    if strategy == "fsdp" and process_rank() > 0:
        with torch.device("meta"):
            yield
    else:
        yield


def shard(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Shard a model in place over ``mesh``: block by block and stage by stage, then what is left.

    A block's or stage's weights are gathered when it runs and dropped after; a stage is one unit, since all of
    its rounds use the same weights.

    The weights are those of the first process, bit for bit. What the others hold is dropped before any room is
    made for their shares; the model is then laid out on the meta device, and the first process sends the shares
    out tensor by tensor. So no process but the first ever holds the whole model (:func:`initialized_once`), and
    the device of none does.

    Args:
        model: on the CPU, or on the meta device on every process but the first.
        mesh: of all processes, one-dimensional.
        device: where this process's shares go.
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
    for name, buffer in model.named_buffers():  # those that no state_dict has
        if is_first:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)


def is_sharded(model: Module) -> bool:
    """Whether this process holds only its share of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
