"""Weights of a layer by parameter name, which conversions read from one model and write into another.

A layer is a mapping from module kinds to the parameters of a module, under the names that pools use
(``qkv_weight``); matrices are [in, out], as pools and GPT-2's files store them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mom.model.blocks import Block
from mom.model.pools.pool import Pool

Weights = Mapping[str, Tensor]
Layer = Mapping[str, Weights]
Names = Mapping[str, Mapping[str, str | tuple[str, ...]]]
"""Our kind and parameter -> a template of the name in a file, or of several names to join along outputs."""


def affine(ours: str, theirs: str) -> dict[str, str]:
    """Return the names of a projection or norm that has a weight and a bias."""
    return {f"{ours}_weight": f"{theirs}.weight", f"{ours}_bias": f"{theirs}.bias"}


def read_layer(
    take: Callable[[str], Tensor], names: Names, *, transpose: bool = False, **fields: object
) -> Layer:
    """Read a layer from a file with other parameter names.

    Args:
        take: returns a tensor by its name in the file.
        names: templates of the names in the file.
        transpose: the file stores matrices as [out, in].
        fields: values for the placeholders of the templates, such as the number of the layer.
    """

    def read(templates: str | tuple[str, ...]) -> Tensor:
        if isinstance(templates, str):
            tensor = take(templates.format(**fields))
        else:
            tensor = torch.cat([take(template.format(**fields)) for template in templates])
        return tensor.t() if transpose and tensor.dim() == 2 else tensor

    return {kind: {ours: read(theirs) for ours, theirs in own.items()} for kind, own in names.items()}


def read_block(block: Block) -> Layer:
    """Return the weights of a plain block (views, not copies)."""
    parts = {kind: _by_pool_name(part) for kind, part in block.named_children()}
    return {kind: weights for kind, weights in parts.items() if weights}


def write_block(block: Block, layer: Layer) -> None:
    """Copy a layer into a plain block."""
    for kind, weights in layer.items():
        _copy(_by_pool_name(block.get_submodule(kind)), weights)


def write_module(pool: Pool, index: int, weights: Weights) -> None:
    """Copy weights into module ``index`` of a pool."""
    _copy({name: stacked[index] for name, stacked in pool.named_parameters(recurse=False)}, weights)


def _by_pool_name(part: nn.Module) -> dict[str, Tensor]:
    """Return parameters of a plain block with a pool's names and layout."""
    return {
        name.replace(".", "_"): tensor.t() if tensor.dim() == 2 else tensor
        for name, tensor in part.named_parameters()
    }


@torch.no_grad()
def _copy(ours: Weights, theirs: Weights) -> None:
    for name in theirs.keys() - ours.keys():
        raise ValueError(f"unexpected weight {name}: the target layer has none")
    for name, tensor in ours.items():
        if name not in theirs:
            raise ValueError(f"missing weight {name}: the source layer has none")
        if tensor.shape != theirs[name].shape:
            raise ValueError(f"{name} must have shape {tuple(tensor.shape)}, got {tuple(theirs[name].shape)}")
        tensor.copy_(theirs[name])
