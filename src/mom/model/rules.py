"""The checks of a model's options: each by itself, and the rules between them; without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mom.model.declaration import declared
from mom.model.layout import PoolLayout, check_entries, named_entries
from mom.model.options import ModelOptions, kind_options
from mom.model.registry import InvalidOption, as_yaml, one_of
from mom.model.registry import routers as router_kinds


def options_from(given: Mapping[str, Any]) -> ModelOptions:
    """Build and check options from a mapping as users write it, including options of router kinds.

    Raises:
        InvalidOption: for the first option that is unknown or invalid.
    """
    names = {"pools" if name == "pool_specs" else name for name in declared(ModelOptions)}
    known = [*sorted(names), *kind_options()]
    for name, value in given.items():
        if name not in known:
            raise InvalidOption(name, value, f"is not an option: it {one_of(name, known)}")
    options = ModelOptions()
    for name, value in given.items():
        setattr(options, "pool_specs" if name == "pools" else name, value)
    check_options(options)
    return options


def check_options(options: ModelOptions) -> None:
    """Check all options; raise :class:`InvalidOption` if one is invalid."""
    for name, declaration in declared(ModelOptions).items():
        declaration.check(getattr(options, name), "pools" if name == "pool_specs" else "")
    for name, declaration in declared(router_kinds.find(options.router)).items():
        if not hasattr(options, name):
            setattr(options, name, declaration.default)
    for name, declaration in kind_options().items():
        if hasattr(options, name):
            declaration.check(getattr(options, name))
    if options.d_model % options.num_heads:
        rule = f"must be a multiple of num_heads ({options.num_heads})"
        raise InvalidOption("d_model", options.d_model, rule)
    if options.components.rotary and options.d_model // options.num_heads % 2:
        rule = f"must be an even multiple of num_heads ({options.num_heads}) for rotary positions"
        raise InvalidOption("d_model", options.d_model, rule)
    check_entries(options.pool_specs)
    if options.num_stages:
        _check_routing(options)


def _check_routing(options: ModelOptions) -> None:
    layouts = options.pools()
    for layout in layouts:
        most = layout.most_choices()
        if isinstance(layout.top_k, int) and layout.top_k > most:
            rule = (
                f"must be between 1 and {most}, the choices that every round of the {layout.name} pool has "
                f"({layout.num_modules} modules, schedule {layout.schedule}, "
                f"{'with' if layout.skip else 'without'} SKIP), or all"
            )
            raise InvalidOption(_top_k_option(options, layout), layout.top_k, rule)
    if options.absorbing_skip and not any(layout.may_skip() for layout in layouts):
        rule = (
            "must be false if every token runs a module in every step: it requires skip, and a top_k of 1 or "
            "skip_rule first"
        )
        raise InvalidOption("absorbing_skip", True, rule)
    if not options.router_kind.learns:
        unlearned = {
            "router_prior": "none",
            "settle_steps": None,
            "balance_bias_rate": 0,
            "depth_target": None,
        }
        defaults = declared(ModelOptions)
        for name, allowed in unlearned.items():
            if getattr(options, name) not in (allowed, defaults[name].default):
                rule = f"must be {as_yaml(allowed)} with router {options.router}, which does not learn"
                raise InvalidOption(name, getattr(options, name), rule)
    if (
        options.score_function == "identity"
        and options.normalize_weights is True
        and options.router_kind.learns
    ):
        rule = "must be auto or false with score_function identity, whose scores can sum to 0"
        raise InvalidOption("normalize_weights", True, rule)
    if options.settle_steps is not None and any(layout.num_selected() > 1 for layout in layouts):
        rule = "must be null with a top_k above 1, since a token ID keeps one module"
        raise InvalidOption("settle_steps", options.settle_steps, rule)
    _check_capacity(options, layouts)
    if options.depth_target is not None:
        _check_depth_target(options, options.depth_target, layouts)


def _check_capacity(options: ModelOptions, layouts: tuple[PoolLayout, ...]) -> None:
    entries = dict(named_entries(options.pool_specs))
    own = {f"pools.{name}.capacity": entry.get("capacity") for name, entry in entries.items()}
    given = [
        (name, value) for name, value in ({"capacity": options.capacity} | own).items() if value is not None
    ]
    if not given:
        return
    if not options.router_kind.learns:
        raise InvalidOption(*given[0], f"must be null with router {options.router}, which does not learn")
    if all(layout.capacity is None for layout in layouts):
        rule = "must be null without skip: tokens that no module takes choose SKIP"
        raise InvalidOption(*given[0], rule)
    excluded = {
        "normalize_weights": (True, "must be auto or false", "a module's weight is its probability"),
        "balance_bias_rate": (
            options.balance_bias_rate or None,
            "must be 0",
            "modules take equally many tokens",
        ),
        "settle_steps": (options.settle_steps, "must be null", "modules choose their tokens"),
        "depth_target": (options.depth_target, "must be null", "the capacity sets the depth"),
    }
    for name, (value, rule, reason) in excluded.items():
        if value is not None and getattr(options, name) == value:
            raise InvalidOption(name, value, f"{rule} with a capacity: {reason}")


def _top_k_option(options: ModelOptions, layout: PoolLayout) -> str:
    """Return the option that sets a pool's K."""
    if dict(named_entries(options.pool_specs))[layout.name].get("top_k") is not None:
        return f"pools.{layout.name}.top_k"
    flat = f"{layout.kind.name}_top_k"
    return "top_k" if getattr(options, flat, None) is None else flat


def _check_depth_target(options: ModelOptions, target: float, layouts: tuple[PoolLayout, ...]) -> None:
    skipping = [layout.position for layout in layouts if layout.may_skip()]
    always = options.skip_rule == "share" and all(layout.num_selected() > 1 for layout in layouts)
    if not skipping and always:
        rule = (
            f"must be null with top_k {options.top_k} and skip_rule share, with which every token runs a module in "
            "every step"
        )
        raise InvalidOption("depth_target", target, rule)
    steps = options.num_rounds * len(skipping)
    if options.absorbing_skip:  # a token that exits in the first step that allows it runs none after it
        steps = options.num_rounds * len(layouts) - skipping[0]
    least = options.graph_depth - options.num_stages * steps / len(layouts)
    if not least <= target <= options.graph_depth:
        rule = f"must be between {least:g} and {options.graph_depth}, or null"
        raise InvalidOption("depth_target", target, rule)
