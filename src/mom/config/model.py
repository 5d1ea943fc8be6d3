"""The ``model`` and ``router`` groups, derived from the options that models, routers, and module kinds declare."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from mom.config.checks import conform, known_names
from mom.errors import UsageError, as_written
from mom.model import pools, registry, routers
from mom.model.options import options_of
from mom.model.rules import options_from

GROUPS = ("model", "router")
BUILT_IN = (routers, pools)
"""The packages whose import registers the built-in kinds."""


def store_groups(config_dir: Path) -> None:
    """Store the parts of the groups that no file in ``config_dir`` contains: defaults, and routers of plugins.

    ``shared/defaults`` of each group has every option at its default. A router that a plugin registers becomes a
    choice of the group, so that ``router=mine`` works.
    """
    store = ConfigStore.instance()
    for group in GROUPS:
        store.store(group=f"{group}/shared", name="defaults", node=default_options(group), package=group)
    for name in registry.routers:
        if not (config_dir / "router" / f"{name}.yaml").exists():
            node = {"defaults": ["shared/defaults", "_self_"], "router": name}
            store.store(group="router", name=name, node=node)
    OmegaConf.register_new_resolver("options_help", options_help, replace=True)


def default_options(group: str) -> dict[str, Any]:
    """Return the options of a group with their defaults in a request."""
    values = {name: option.default for name, option in options_of(group).items()}
    # A null vocab_size is the tokenizer's. Hydra lets a list or a mapping override null pools.
    return values | {name: None for name in ("vocab_size", "pools") if name in values}


def options_help(group: str) -> str:
    """Return the help on each option of a group, with its default, in lines of at most 80 characters."""
    defaults = default_options(group)
    lines = []
    for name, option in options_of(group).items():
        label = f"  {name}={as_written(defaults[name])}"
        lines.append(
            textwrap.fill(option.help, 80, initial_indent=f"{label:<33}  ", subsequent_indent=" " * 35)
        )
    return "\n".join(lines)


def check_options(group: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and types of a group's options, and return the converted options without null ``pools``.

    Raises:
        UsageError: for the first invalid option.
    """
    hints = {name: option.type for name, option in options_of(group).items()}
    hints |= {name: hints[name] | None for name in ("vocab_size", "pools") if name in hints}
    known_names(group, options, hints)
    converted = {name: conform(f"{group}.{name}", value, hints[name]) for name, value in options.items()}
    if converted.get("pools", ()) is None:
        del converted["pools"]
    return converted


def check_model(model: Mapping[str, Any], router: Mapping[str, Any], sequence_length: int) -> None:
    """Check the options of a model to be trained, without PyTorch.

    Raises:
        UsageError: for the first invalid option.
    """
    try:
        options = options_from({**model, **router, "vocab_size": model.get("vocab_size") or 1})
    except ValueError as reason:
        raise invalid_model(reason) from reason
    if sequence_length > options.max_positions:
        raise UsageError(
            f"data.sequence_length must be at most model.max_positions ({options.max_positions}), "
            f"got {sequence_length}"
        )
    # The model allows this because the authors' checkpoints have it, but training such a model is always a mistake.
    if (
        options.num_stages
        and options.normalize_weights is True
        and options.router_kind.learns
        and any(layout.top_k == 1 for layout in options.pools())
    ):
        raise UsageError(
            "router.normalize_weights must be auto or false with a top_k of 1, or the language-model loss cannot "
            "train the router, got true"
        )


def invalid_model(reason: ValueError) -> UsageError:
    """Convert an error about a model's configuration, adding the group to the name of the option."""
    if not isinstance(reason, registry.InvalidOption):
        return UsageError(f"cannot build the model: {as_written(str(reason))}")
    group = "router" if reason.option in options_of("router") else "model"
    return UsageError(reason.sentence(f"{group}."))
