"""An analysis put together: the run's numbers, and every figure there is something to draw for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mom.analysis.messages import describe_binned, describe_removal, describe_similarity, describe_use
from mom.analysis.report.page import ReportFigure
from mom.analysis.statistics import Depths, Routing
from mom.analysis.traces import Header
from mom.cost.estimate import flops_per_token, num_parameters
from mom.metrics.modules import Pair, Removal
from mom.metrics.routing import POOLS
from mom.model import MoMForCausalLM
from mom.plots import depth as depth_figures
from mom.plots import modules as module_figures
from mom.plots import routing as figures


def measured(
    model: MoMForCausalLM,
    header: Header,
    depths: Depths,
    routing: Mapping[str, Routing],
    removal: Removal | None,
    tolerance: float,
    length: int,
) -> dict[str, Any]:
    """The run's numbers by the names that metrics have elsewhere.

    Args:
        model: that was recorded.
        header: of the traces.
        depths: of its tokens.
        routing: use of its pools.
        removal: the loss without modules, if it was measured.
        tolerance: rise of the loss up to which modules count as droppable.
        length: T, tokens in a sequence, for ``flops/*``, which are of a forward over one sequence.
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
    for kind, one in routing.items():
        used[kind] = float(one.places[:, :-1].sum()) / (depths.tokens * len(one.places))
        facts[f"routing/{kind}/skip_share"] = float(one.places[:, -1].sum() / one.places.sum())
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
    """Parameters of one module of each kind."""
    stage = model.model.stages[0]
    pools = {kind: getattr(stage, kind).pool for kind in POOLS}
    return {kind: sum(one[0].numel() for one in pool.parameters()) for kind, pool in pools.items()}


def draw(
    header: Header,
    routing: Mapping[str, Routing],
    depths: Depths,
    pairs: Sequence[Pair],
    removal: Removal | None,
    tolerance: float,
    run: str,
) -> dict[str, ReportFigure]:
    """Every figure that there is something to draw for, by the name of its file.

    Args:
        header: of the traces.
        routing: use of the pools.
        depths: of the tokens.
        pairs: similarities of modules; may be empty.
        removal: the loss without modules, if it was measured.
        tolerance: as for :func:`measured`.
        run: the run's name.
    """
    number = len(header.stages)
    places = [routing[kind].places for kind in POOLS]
    config = header.config
    names = {"effective_depth": "effective", "weighted_depth": "weighted"}
    drawn = {
        "module_use": ReportFigure(
            figures.module_use(*places, run=run, num_stages=number),
            "Share of a round's places (K for each token) that each module holds.",
            describe_use(header, routing),
        ),
        "depth_distribution": ReportFigure(
            depth_figures.depth_distribution(
                {names[name]: one for name, one in depths.distribution.items()},
                run=run,
                graph_depth=config.graph_depth,
            ),
            "How deep the network is for its tokens.",
            "Histograms of effective and weighted depth over tokens; mean "
            f"{depths.mean['effective_depth']:.2f} and {depths.mean['weighted_depth']:.2f} "
            f"of {config.graph_depth} blocks.",
        ),
        "depth_by_frequency": ReportFigure(
            depth_figures.depth_by_frequency(
                {names[name]: one for name, one in depths.by_frequency.items()}, run=run
            ),
            "Depth of tokens whose type is rare or frequent in the recorded text.",
            describe_binned(
                "frequency of the token's type per million", depths.by_frequency["weighted_depth"]
            ),
        ),
    }
    if len(places[0]) > 1:
        flows = [routing[kind].flow for kind in POOLS]
        drawn["module_flow"] = ReportFigure(
            figures.module_flow(*flows, run=run, num_stages=number),
            "Where tokens go from round to round, by their first choice.",
            "Flow of tokens between modules from each round to the next; the numbers are in use.csv.",
        )
    if depths.predicted:
        drawn["depth_by_loss"] = ReportFigure(
            depth_figures.depth_by_loss({names[name]: one for name, one in depths.by_loss.items()}, run=run),
            "Depth at positions whose next token is predicted well or badly.",
            describe_binned("loss of the next token in nats", depths.by_loss["weighted_depth"]),
        )
    for stage in sorted({pair.first.stage for pair in pairs}):
        drawn[f"similarity_{stage}"] = ReportFigure(
            module_figures.similarity(pairs, run=run, stage=stage),
            f"Similarity of the modules of stage {stage}: weights, outputs on the same inputs, and their CKA.",
            describe_similarity(pairs, stage),
        )
    if removal is not None and removal.alone:
        drawn["removal"] = ReportFigure(
            module_figures.removal(removal, run=run, tolerance=tolerance),
            f"Loss without modules, on {removal.tokens:,} predicted tokens; the dotted line is the tolerance.",
            describe_removal(removal, tolerance),
        )
    return drawn
