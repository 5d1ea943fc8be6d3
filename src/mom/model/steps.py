"""The steps of a forward pass, which transformers can checkpoint one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers.modeling_layers import GradientCheckpointingLayer


class Step(GradientCheckpointingLayer):
    """A block or a round of a forward pass; with activation checkpointing, it is computed again when needed."""

    def forward(self, function: Callable, *arguments: Any) -> Any:
        """Call a function."""
        return function(*arguments)

    def run(self, function: Callable, *arguments: Any) -> Any:
        """Call a function, checkpointed if the layer is; all tensors are then arguments, for reentrant autograd."""
        if not (self.training and self.gradient_checkpointing):
            return self(function, *arguments)
        leaves, inputs = tree_flatten(arguments)
        outputs: list[TreeSpec] = []

        def flat(*tensors: Any) -> tuple[Any, ...]:
            result, spec = tree_flatten(function(*tree_unflatten(tensors, inputs)))
            outputs.append(spec)
            return tuple(result)

        return tree_unflatten(self(flat, *leaves), outputs[0])


def run_eagerly(function: Callable, *arguments: Any) -> Any:
    """Run without :meth:`MoMModel.compile_layers`: with a cache, every length would be compiled again."""
    with torch.compiler.set_stance("force_eager"):
        return function(*arguments)
