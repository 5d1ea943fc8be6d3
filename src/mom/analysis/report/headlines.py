"""The three numbers at the top of the report: the loss, the depth that tokens take, and what the choice is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mom.analysis.choices import Choices
from mom.analysis.report.page import Headline
from mom.analysis.statistics import Depths
from mom.analysis.traces import Header
from mom.metrics.names import pool_label
from mom.runs.curves import read_curves
from mom.runs.describe import describe_data, run_of_weights
from mom.runs.directory import read_request, read_summary


class OwnValidation(NamedTuple):
    """The validation of the run itself: its loss, the step of the checkpoint, and the tokens it was measured on."""

    loss: float
    step: int
    measured_on: str


def own_validation(source: str, step: int) -> OwnValidation | None:
    """Return the validation that the run of a checkpoint measured at its step; ``None`` if it is not known."""
    folder = run_of_weights(source)
    curve = read_curves(folder).get("val/loss")
    if curve is None or step not in curve.steps:
        return None
    loss = float(curve.values[curve.steps == step][0])
    request = read_request(folder) or {}
    batches = request.get("trainer", {}).get("limit_val_batches")
    tokens = read_summary(folder).get("data/validation_tokens")
    part = "all" if batches is None else f"at most {batches} batches of"
    how_many = f"{part} {tokens:,} tokens" if isinstance(tokens, int) else f"{part} tokens"
    data = describe_data(request.get("data")) or "its data"
    return OwnValidation(loss, step, f"on {how_many} of {data}, validation")


def headlines(
    facts: Mapping[str, Any], header: Header, depths: Depths, choices: Choices, own: OwnValidation | None
) -> list[Headline]:
    """Return the headlines; ``own`` is ``None`` if the run's validation is not known."""
    return [
        _loss(facts, header, depths, own),
        _depth(facts, header),
        _choice(choices) if choices.values else _skip(facts, header),
    ]


def _loss(facts: Mapping[str, Any], header: Header, depths: Depths, own: OwnValidation | None) -> Headline:
    if not depths.predicted:
        return Headline("–", "loss", f"{header.text} has no token to predict.")
    note = f"On {depths.predicted:,} predicted tokens of {header.text}; perplexity {facts['val/perplexity']:,.2f}."
    if own is not None:
        note += f" The run's own validation at step {own.step:,}: {own.loss:.3f}, {own.measured_on}."
    return Headline(f"{depths.loss:.3f} nats/token", "loss", note)


def _depth(facts: Mapping[str, Any], header: Header) -> Headline:
    graph = facts["depth/graph"]
    if any(layout.may_skip() for layout in header.pools.values()):
        kind, note = "effective", "A step counts if the token ran a module."
    else:
        kind, note = (
            "weighted",
            "Every token runs a module in every step; steps count by the modules' weight.",
        )
    return Headline(
        f"{facts[f'depth/{kind}']:.2f} of {graph} blocks",
        f"{kind} depth of a token",
        f"{note} SKIP gets {_shares(facts, header)} of the assignments.",
    )


def _choice(choices: Choices) -> Headline:
    permuted = [item for item in choices.values if item.round is None and item.replacement == "permuted"]
    value = next(
        (item for item in permuted if item.kind is None), permuted[0]
    )  # of a single pool, only its own
    is_known = not math.isnan(value.error)
    error = f" ± {value.error:.4f}" if is_known else ""
    note = "Loss increase when every token takes another token's choices instead of its own."
    if is_known and abs(value.increase) <= 2 * value.error:
        note += " It cannot be told from 0: the choices may as well be arbitrary."
    better = [
        f"{regret.better:.0%} of the {pool_label(pool)} steps"
        for (pool, number), regret in choices.regrets.items()
        if number is None
    ]
    if better:
        note += f" In hindsight, another choice was better in {' and '.join(better)}."
    return Headline(f"{value.increase:+z.4f}{error} nats", "value of the choice", note)


def _skip(facts: Mapping[str, Any], header: Header) -> Headline:
    return Headline(
        _shares(facts, header),
        "SKIP's share of the assignments",
        "An assignment is one of a token's choices.",
    )


def _shares(facts: Mapping[str, Any], header: Header) -> str:
    shares = [
        f"{facts[f'routing/{pool}/skip_share']:.1%} ({layout.label})" for pool, layout in header.pools.items()
    ]
    return " and ".join(shares)
