"""The summary of a model that a run prints before training: parameters by part, depth, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from torch import nn

from mom.console import build_table
from mom.cost.estimate import Flops, flops_per_token, num_active_parameters
from mom.model import MoMForCausalLM
from mom.model.blocks import Block
from mom.model.modeling import MoMEmbedding
from mom.model.pools.pool import Pool
from mom.model.routers.router import Router

BLOCKS, HEAD, OTHERS = "plain blocks", "output head", "norms and others"


def parameters_by_part(model: MoMForCausalLM) -> dict[str, int]:
    """Count the parameters of each part; a tied output head counts as part of the embeddings."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for part, module in (*_parts(model), (OTHERS, model)):
        new = {
            id(parameter): parameter.numel() for parameter in module.parameters() if id(parameter) not in seen
        }
        seen |= new.keys()
        if new:
            counts[part] = counts.get(part, 0) + sum(new.values())
    return counts


def summary_table(model: MoMForCausalLM, sequence_length: int) -> Table:
    """Build the table of a model's parameters and of the FLOPs of a forward pass, per token, if nothing is skipped."""
    config = model.config
    counts = parameters_by_part(model)
    flops = flops_per_token(config, sequence_length)
    routed = "modules" if config.num_stages else BLOCKS
    rows = [[part, f"{count:,}", _flops_of(part, flops)] for part, count in counts.items()]
    rows.append([f"attention to {sequence_length} tokens", None, _readable(flops.attention)])
    if HEAD not in counts:
        rows.append([f"{HEAD}, tied", None, _readable(flops.head)])
    if config.num_stages:
        rows.append([f"all {routed}", None, _readable(flops.modules)])
    rows.append(["in total", f"{sum(counts.values()):,}", _readable(flops.total)])
    depth = f"{config.graph_depth} blocks deep"
    if config.num_stages:
        depth += f", {config.fixed_depth} of them for every token; a token can use "
        depth += f"{num_active_parameters(config):,.0f} parameters"
    headings = ["model", "parameters", "FLOPs per token"]
    return build_table(headings, rows, caption=depth, box=None, pad_edge=False)


def _parts(model: MoMForCausalLM) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, MoMEmbedding):
            yield "embeddings", module
        elif isinstance(module, Pool):
            yield f"{module.layout.name} modules", module
        elif isinstance(module, Router):
            yield "routers", module
        elif isinstance(module, Block):
            yield BLOCKS, module
        elif name == "lm_head":
            yield HEAD, module


def _flops_of(part: str, flops: Flops) -> str | None:
    by_part = {BLOCKS: flops.blocks, "routers": flops.routers, HEAD: flops.head}
    return _readable(by_part[part]) if part in by_part else None


def _readable(number: float) -> str:
    units = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, unit = next(((size, unit) for size, unit in units if number >= size), (1.0, ""))
    return f"{number / size:.3g} {unit}".rstrip()
