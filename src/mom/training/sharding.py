"""Fully sharded training: every process keeps its share of weights, gradients and optimiser state."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mom.model.assembly import Stage
from mom.model.blocks import Block


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


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place over ``mesh``: block by block and stage by stage, then what is left.

    A block's or stage's weights are gathered when it runs and dropped after; a stage is one unit, since all of
    its rounds use the same weights. Every process must hold the same weights before.
    """
    for part in model.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    for part in model.modules():
        if isinstance(part, Stage):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only its share of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
