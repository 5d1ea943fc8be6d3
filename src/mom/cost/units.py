"""The units in which FSDP shards a model: every plain block and stage, and the rest."""

from __future__ import annotations

import torch

from mom.model import MoMConfig, MoMForCausalLM
from mom.model.assembly import Stage
from mom.model.blocks import Block


def unit_sizes(config: MoMConfig) -> list[int]:
    """Count the parameters of each unit, first those of the root: embeddings, norms and the head."""
    with torch.device("meta"):
        model = MoMForCausalLM(config)
    taken: set[int] = set()
    sizes = []
    # Anchors are blocks within stages, and units of their own.
    for kind in (Block, Stage):
        for part in model.modules():
            if isinstance(part, kind):
                own = [parameter for parameter in part.parameters() if id(parameter) not in taken]
                taken.update(map(id, own))
                sizes.append(sum(parameter.numel() for parameter in own))
    return [sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in taken), *sizes]
