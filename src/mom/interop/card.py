"""Model cards: what a model is, how it was trained, what was measured of it, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mom import __version__
from mom.cost.estimate import flops_per_token, num_active_parameters, num_parameters
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification

CODE_LICENSE = "Apache-2.0"
_ROUTING = ("depth", "routing")
_MEASURED = ("val/", "test/", "depth/", "routing/", "glue/", "xsum/")

_CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
{license}tags:
- mixture-of-modules
- mom
---

# {title}

A {kind} of {size} parameters, trained with `mom` (Mixture-of-Modules, Gong et al. 2024, arXiv 2407.06677).

## How to load it

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}", trust_remote_code=True)
model = {auto}.from_pretrained("{place}", trust_remote_code=True)
```

The folder contains the model's code. If `mom` is installed, `from mom import MoMForCausalLM` makes
`trust_remote_code` unnecessary.

## Model

{model}

## Training

{training}

## Results

{results}

## License

{terms}
"""


@dataclass(frozen=True)
class Provenance:
    """What is known about the training of weights.

    Args:
        run: name of the run.
        data: the data, in words.
        steps: optimizer steps of these weights.
        tokens: tokens trained on.
        training_flops: FLOPs of the training.
        results: metrics of these very weights by name.
        measured_on: what the results were measured on, in words.
    """

    run: str | None = None
    data: str | None = None
    steps: int | None = None
    tokens: float | None = None
    training_flops: float | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    measured_on: str = ""


def model_card(
    model: MoMForCausalLM | MoMForSequenceClassification,
    provenance: Provenance,
    *,
    title: str,
    place: str,
    license_name: str | None = None,
) -> str:
    """Return the text of a model card.

    Args:
        model: the exported model.
        provenance: what is known about its training.
        title: heading of the card.
        place: the folder or Hub id from which it is loaded.
        license_name: license of the weights, as the Hub names it; ``None`` if none was given.
    """
    config = model.config
    is_classifier = isinstance(model, MoMForSequenceClassification)
    return _CARD.format(
        pipeline="text-classification" if is_classifier else "text-generation",
        license="" if license_name is None else f"license: {license_name}\n",
        title=title,
        kind="classifier" if is_classifier else "language model",
        size=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        place=place,
        auto="AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM",
        model=_table("property", _properties(config, provenance.results)),
        training=_table("training", _training(provenance)) or "Nothing was recorded with these weights.",
        results=_results(provenance),
        terms=_terms(license_name),
    )


def _terms(license_name: str | None) -> str:
    weights = (
        "No license of the weights was given; the license of the training data may limit their use."
        if license_name is None
        else f"The weights: {license_name}."
    )
    return f"{weights} The code in this folder: {CODE_LICENSE}."


def _properties(config: MoMConfig, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    length = config.max_positions
    rows = [
        ("layout", _layout(config)),
        ("width, heads", f"{config.d_model}, {config.num_heads}"),
        ("vocabulary, positions", f"{config.vocab_size:,}, {config.max_positions:,}"),
        ("parameters", f"{num_parameters(config):,} (without a classifier's head)"),
        ("parameters that a token can use", f"{num_active_parameters(config):,.0f}"),
        ("depth of the graph", f"{config.graph_depth} blocks"),
    ]
    if "depth/effective" in results:
        rows.append(("effective depth, as measured", f"{results['depth/effective']:.2f} blocks"))
    rows.append((f"FLOPs per token, at {length:,} tokens", f"{flops_per_token(config, length).total:,.0f}"))
    if "compute/flops_per_token" in results:
        rows.append(("FLOPs per token, as measured", f"{results['compute/flops_per_token']:,.0f}"))
    if config.num_stages:
        rows.append(("routers", _routers(config)))
    return rows


def _layout(config: MoMConfig) -> str:
    """Describe a model's blocks and pools in a phrase."""
    if not config.num_stages:
        return f"a plain transformer of {config.graph_depth} blocks"
    modules = " and ".join(f"{pool.num_modules} {pool.label}" for pool in config.pools())
    return (
        f"{config.num_bottom_blocks} bottom block(s), {config.num_stages} stage(s) of {modules} modules assembled in "
        f"{config.num_rounds} rounds{' with an anchor' * config.anchors}, {config.num_top_blocks} top block(s)"
    )


def _routers(config: MoMConfig) -> str:
    """Describe the routers in a phrase."""
    pools = config.pools()
    choices = " and ".join(dict.fromkeys(str(pool.top_k) for pool in pools))
    skip = " and ".join(pool.label for pool in pools if pool.skip) or "none"
    return f"{config.router}, K = {choices}, temperature {config.temperature:g}, SKIP in: {skip}"


def _training(provenance: Provenance) -> list[tuple[str, str]]:
    rows = [
        ("run", provenance.run),
        ("data", provenance.data),
        ("optimizer steps", _count(provenance.steps)),
        ("tokens", _count(provenance.tokens)),
        ("FLOPs", None if not provenance.training_flops else f"{provenance.training_flops:.3g}"),
        ("exported by", f"mom {__version__}"),
    ]
    known = [(name, value) for name, value in rows if value is not None]
    return known if len(known) > 1 else []


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _results(provenance: Provenance) -> str:
    """Return the table of results as Markdown."""
    numbers = [
        (name, f"{value:.4f}")
        for name, value in sorted(
            provenance.results.items(), key=lambda item: item[0].split("/")[0] in _ROUTING
        )
        if isinstance(value, int | float) and not isinstance(value, bool) and name.startswith(_MEASURED)
    ]
    if not numbers:
        return "No results were recorded with these weights."
    return f"{provenance.measured_on}\n\n{_table('metric', numbers, '---:')}"


def _table(heading: str, rows: Iterable[tuple[str, str]], align: str = "---") -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join([f"| {heading} | value |", f"|---|{align}|", *lines]) if lines else ""


def describe_training_data(data: Any, summary: Mapping[str, Any]) -> str | None:
    """Describe the data of a run in words: kind, source, and the fingerprint of its content.

    Args:
        data: the ``data`` group of its configuration.
        summary: its summary.
    """
    if not isinstance(data, Mapping):
        return None
    words = [str(data[key]) for key in ("kind", "corpus", "name") if data.get(key)]
    path = data.get("path")
    if path:
        # A card may become public, so it does not tell the folders of this machine; a Hub id is no local path.
        words.append(
            str(path) if data.get("corpus") == "datasets" and not Path(path).exists() else Path(path).name
        )
        words += [f"{key}={data[key]}" for key in ("subset", "split") if data.get(key)]
    fingerprint = summary.get("data/fingerprint")
    return " ".join(words) + (f" (content {str(fingerprint)[:16]})" if fingerprint else "")
