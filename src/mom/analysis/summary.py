"""Summarize an analysis: the run's numbers, and every figure for which there is data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from mom.analysis.messages import describe_binned, describe_removal, describe_similarity, describe_use
from mom.analysis.report.page import ReportFigure
from mom.analysis.statistics import Depths, Routing
from mom.analysis.traces import Header
from mom.cost.estimate import flops_per_token, num_parameters
from mom.metrics.modules import Pair, Removal
from mom.metrics.names import pool_label
from mom.model import MoMForCausalLM
from mom.plots import depth as depth_figures
from mom.plots import modules as module_figures
from mom.plots import routing as figures


def summarize(
    model: MoMForCausalLM,
    header: Header,
    depths: Depths,
    routing: Mapping[str, Routing],
    removal: Removal | None,
    tolerance: float,
    length: int,
) -> dict[str, Any]:
    """Return the run's numbers by metric name.

    Args:
        model: the recorded model.
        header: header of the traces.
        depths: depths of the tokens.
        routing: usage of the pools.
        removal: the loss without modules, if it was measured.
        tolerance: loss increase up to which modules count as removable.
        length: T; ``flops/*`` are for a forward pass over T tokens.
    """
    config = model.config
    facts: dict[str, Any] = {
        "parameters": num_parameters(config),
        "data/tokens": depths.tokens,
        "val/loss": depths.loss,
        "val/perplexity": math.exp(depths.loss) if depths.predicted else math.nan,
        "depth/graph": config.graph_depth,
        "depth/effective": depths.mean["effective_depth"],
        "depth/weighted": depths.mean["weighted_depth"],
        "depth/modules_per_token": depths.mean["modules_per_token"],
    }
    used = {}
    for pool, usage in routing.items():
        used[pool] = float(usage.assignments[:, :-1].sum()) / (depths.tokens * len(usage.assignments))
        facts[f"routing/{pool}/skip_share"] = float(usage.assignments[:, -1].sum() / usage.assignments.sum())
    facts["flops/forward"] = flops_per_token(config, length).total * length
    if len(header.stages) == config.num_stages:
        facts["flops/forward_actual"] = flops_per_token(config, length, used).total * length
    if removal is not None:
        droppable = removal.droppable(tolerance)
        facts |= {"removal/loss": removal.loss, "removal/tokens": removal.tokens}
        if removal.greedy:
            facts["removal/droppable"] = len(droppable)
            facts["removal/droppable_modules"] = ", ".join(map(str, droppable))
    return facts


def module_parameters(model: MoMForCausalLM) -> dict[str, int]:
    """Return the number of parameters of a module, by pool."""
    return {layout.name: layout.kind.num_parameters(model.config) for layout in model.config.pools()}


def draw_figures(
    header: Header,
    routing: Mapping[str, Routing],
    depths: Depths,
    pairs: Sequence[Pair],
    removal: Removal | None,
    tolerance: float,
    run: str,
) -> dict[str, ReportFigure]:
    """Draw every figure for which there is data, by file name; see :func:`summarize` for the arguments."""
    num_stages = len(header.stages)
    config = header.config
    use = {pool_label(name): usage.assignments for name, usage in routing.items()}
    names = {"effective_depth": "effective", "weighted_depth": "weighted"}
    drawn: dict[str, tuple[Figure | None, str, str]] = {
        "module_use": (
            figures.module_use(use, run=run, num_stages=num_stages),
            "Fraction of a round's assignments (K per token) that go to each module.",
            describe_use(header, routing),
        ),
        "depth_distribution": (
            depth_figures.depth_distribution(
                {names[name]: counts for name, counts in depths.distribution.items()},
                run=run,
                graph_depth=config.graph_depth,
            ),
            "Depth of the network for each token.",
            "Histograms of effective and weighted depth over tokens; mean "
            f"{depths.mean['effective_depth']:.2f} and {depths.mean['weighted_depth']:.2f} "
            f"of {config.graph_depth} blocks.",
        ),
        "depth_by_frequency": (
            depth_figures.depth_by_frequency(
                {names[name]: binned for name, binned in depths.by_frequency.items()},
                run=run,
                graph_depth=config.graph_depth,
            ),
            "Depth of tokens by how rare or frequent their type is in the recorded text.",
            describe_binned(
                "frequency of the token's type per million", depths.by_frequency["weighted_depth"]
            ),
        ),
    }
    if len(next(iter(use.values()))) > 1:
        flow = {pool_label(name): usage.flow for name, usage in routing.items()}
        drawn["module_flow"] = (
            figures.module_flow(flow, run=run, num_stages=num_stages),
            "Flow of tokens from round to round, by their first choice.",
            "Flow of tokens between modules from each round to the next; use.csv has the numbers.",
        )
    if depths.predicted:
        drawn["depth_by_loss"] = (
            depth_figures.depth_by_loss(
                {names[name]: binned for name, binned in depths.by_loss.items()},
                run=run,
                graph_depth=config.graph_depth,
            ),
            "Depth by how well the next token is predicted.",
            describe_binned("loss of the next token in nats", depths.by_loss["weighted_depth"]),
        )
    for stage in sorted({pair.first.stage for pair in pairs}):
        drawn[f"similarity_{stage}"] = (
            module_figures.similarity(pairs, run=run, stage=stage, pools=tuple(routing)),
            f"Similarity of the modules of stage {stage}: weights, outputs on the same inputs, and CKA of the outputs.",
            describe_similarity(pairs, stage),
        )
    if removal is not None and removal.alone:
        drawn["removal"] = (
            module_figures.removal(removal, run=run, tolerance=tolerance, pools=tuple(routing)),
            f"Loss after module ablation, on {removal.tokens:,} predicted tokens; the dotted line is the tolerance.",
            describe_removal(removal, tolerance),
        )
    return {
        name: ReportFigure(figure, caption, alt)
        for name, (figure, caption, alt) in drawn.items()
        if figure is not None  # it would show the same for all tokens
    }
