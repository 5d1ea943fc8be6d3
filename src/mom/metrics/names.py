"""Names, labels, and formats of the metrics, by dashboard section; docs/metrics.md explains each metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import mom.model.pools
import mom.model.routers  # noqa: F401 (with the line above: registers the built-in kinds)
from mom.console import MetricRow
from mom.model.options import ModelOptions
from mom.model.registry import pools as pool_kinds

DEFAULT_POOLS = tuple(layout.name for layout in ModelOptions().pools())
"""Names of the pools of a model whose configuration does not list any."""

COMPUTE = ("compute/flops_per_token", "compute/share_of_nominal")
PATHS = ("routing/paths_per_thousand_tokens",)
SUMMARY = ("compute/forward_memory",)
"""Names that appear only in the ``summary.json`` of pretraining, because they never change."""

FIGURES = (
    "figures/module_use",
    "figures/module_flow",
    "figures/depth_distribution",
    "figures/depth_by_frequency",
    "figures/depth_by_loss",
    "figures/use_over_time",
)
FFN_BY_RULE = "figures/ffn_by_rule"
"""The feed-forward modules by rule, drawn for controls whose right modules are known."""
SAMPLES = "samples"
EXACT_MATCH = "val/exact_match"
"""Metric of controls; ``val/exact_match/<bucket>`` is that of a part of the validation set."""
CHANCE = "chance/exact_match"
SPECIALIZATION = ("alignment", "collapse_average", "collapse_worst", "inverse_mutual_information")
"""Measures of :class:`mom.metrics.specialization.Specialization`, for controls with known modules."""

_POOL_METRICS = (
    "skip_rate",
    "skip_share",
    "load_max_over_mean",
    "dead_fraction",
    "entropy",
    "first_weight",
    "balance_loss",
    "agreement",
)


def depth_names(pools: Sequence[str] = DEFAULT_POOLS) -> tuple[str, ...]:
    """Return the names of the depth metrics."""
    quantiles = ("effective_std", "effective_q10", "effective_q50", "effective_q90")
    per_pool = (f"effective_{pool}" for pool in pools)
    names = ("effective", *quantiles, *per_pool, "weighted", "modules_per_token", "graph")
    return tuple(f"depth/{name}" for name in names)


def routing_names(pools: Sequence[str] = DEFAULT_POOLS) -> dict[str, tuple[str, ...]]:
    """Return the names of the routing metrics, by section (a section per pool)."""
    return {f"routing/{pool}": tuple(f"routing/{pool}/{name}" for name in _POOL_METRICS) for pool in pools}


def training_names(pools: Sequence[str] = DEFAULT_POOLS) -> dict[str, tuple[str, ...]]:
    """Return the names that pretraining logs at training steps, by section."""
    return {
        "train": tuple(
            f"train/{name}"
            for name in (
                "loss",
                "lm_loss",
                "balance_loss",
                "z_loss",
                "depth_loss",
                "capacity_loss",
                "routing_loss",
            )
        ),
        "depth": depth_names(pools),
        "compute": COMPUTE,
        "routing": PATHS,
        **{section: (*names, f"{section}/gradient_norm") for section, names in routing_names(pools).items()},
        "throughput": tuple(
            f"throughput/{name}" for name in ("tokens_per_second", "tokens", "training_flops", "flops", "mfu")
        ),
        "learning_rate": tuple(
            f"learning_rate/{name}" for name in ("matrices", "vectors", "router_matrices", "router_vectors")
        ),
    }


def validation_names(pools: Sequence[str] = DEFAULT_POOLS) -> dict[str, tuple[str, ...]]:
    """Return the names that pretraining logs at validations, by section."""
    routing = {
        section: (*names, f"{section}/token_dependence") for section, names in routing_names(pools).items()
    }
    shared = {"depth": depth_names(pools), "compute": COMPUTE, "routing": PATHS, **routing}
    return {
        "val": ("val/loss", "val/perplexity", "val/bits_per_byte", EXACT_MATCH),
        **{f"val/{section}": tuple(f"val/{name}" for name in names) for section, names in shared.items()},
        "val/specialization": tuple(
            f"val/routing/{pool}/{name}" for pool in pools for name in SPECIALIZATION
        ),
    }


TRAINING = training_names()
VALIDATION = validation_names()
SECTIONS = {"val": VALIDATION["val"], **TRAINING, **VALIDATION}
"""All metrics of the default pools, in the dashboard's order."""


class Label(NamedTuple):
    """The label and format of a metric in tables.

    Attributes:
        text: a noun with its unit.
        form: a format string for ``value / unit``.
        unit: the divisor of the value.
        meaning: a note for readers who do not know the metric.
    """

    text: str
    form: str
    unit: float = 1
    meaning: str = ""

    def write(self, value: float | None) -> str:
        """Format a value for a table; ``None`` becomes a dash."""
        return "–" if value is None else self.form.format(value / self.unit)


_GIGA, _MIB = 1e9, 2**20
_LABELS: Mapping[str, Label] = {
    "val/loss": Label("validation loss (nats/token)", "{:.4f}", meaning="cross-entropy of the next token"),
    "val/perplexity": Label("perplexity", "{:,.2f}"),
    "val/bits_per_byte": Label("bits per byte", "{:.4f}"),
    EXACT_MATCH: Label("exact match", "{:.3f}", meaning="fraction of examples with all answer tokens right"),
    CHANCE: Label("chance", "{:.3f}"),
    "parameters": Label("parameters", "{:,.0f}"),
    "parameters/active": Label("parameters used per token (at most)", "{:,.0f}"),
    "data/tokens": Label("tokens recorded", "{:,.0f}"),
    "depth/graph": Label(
        "graph depth (blocks)", "{:.0f}", meaning="bottom + top + anchors + stages × rounds"
    ),
    "depth/effective": Label(
        "effective depth (blocks)",
        "{:.2f}",
        meaning="a step counts if the token took a module; a round has one step per pool",
    ),
    "depth/weighted": Label(
        "weighted depth (blocks)", "{:.2f}", meaning="steps count by the weight of the modules taken"
    ),
    "depth/modules_per_token": Label("modules per token", "{:.2f}", meaning="a plain block counts 2"),
    "throughput/tokens_per_second": Label("training tokens per second", "{:,.0f}"),
    "flops/forward": Label("forward pass without SKIP (GFLOP/sequence)", "{:,.3f}", _GIGA),
    "flops/forward_actual": Label(
        "forward pass as routed (GFLOP/sequence)", "{:,.3f}", _GIGA, "only the modules that were used"
    ),
    "forward/total": Label("forward pass with a cache, computed (MiB)", "{:,.1f}", _MIB),
    "removal/droppable": Label(
        "removable modules", "{:.0f}", meaning="removed greedily, without training; see the table of modules"
    ),
}
_POOL_LABELS: Mapping[str, Label] = {
    "skip_rate": Label("{pool}: steps skipped", "{:.1%}"),
    "skip_share": Label("{pool}: SKIP share of assignments", "{:.1%}"),
    "usage": Label("{pool} modules per round, as routed", "{:.2f}"),
}


def label(name: str) -> Label:
    """Return the label of a metric, including ``val/exact_match/<bucket>``, ``routing/<pool>/…``, ``usage/<pool>``."""
    if name in _LABELS:
        return _LABELS[name]
    if name.startswith(f"{EXACT_MATCH}/"):
        return _LABELS[EXACT_MATCH]._replace(text=name.removeprefix(f"{EXACT_MATCH}/").replace("_", " "))
    group, pool, *metric = name.split("/")
    found = _POOL_LABELS[metric[0] if metric else group]
    return found._replace(text=found.text.format(pool=pool_label(pool)))


def metric_rows(names: Iterable[str]) -> list[MetricRow]:
    """Return table rows for metrics; an indented name gives an indented label."""
    rows = []
    for indented in names:
        name = indented.lstrip()
        found = label(name)
        indent = indented.removesuffix(name)
        rows.append(MetricRow(f"{indent}{found.text}", name, found.form, found.unit))
    return rows


def exact_match_names(results: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the names of the exact matches among results, that of all examples first."""
    names = (name for metrics in results for name in metrics)
    return list(dict.fromkeys(name for name in names if f"{name}/".startswith(f"{EXACT_MATCH}/")))


def pools_in(columns: Iterable[Mapping[str, object]], section: str) -> tuple[str, ...]:
    """Return the names of the pools with metrics of a section, ``routing`` or ``usage``, in order."""
    parts = (name.split("/") for column in columns for name in column)
    found = (part for part in parts if part[0] == section and len(part) == (3 if section == "routing" else 2))
    return tuple(dict.fromkeys(part[1] for part in found))


def pool_label(name: str) -> str:
    """Return a pool's label in tables and figures: that of the kind of this name, or else the name in words."""
    kind = pool_kinds.get(name)
    return name.replace("_", " ") if kind is None else kind.label
