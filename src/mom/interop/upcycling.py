"""Upcycling: decompose the plain transformer of phase 1 into the modules of phase 2 (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mom.config import UpcycleConfig
from mom.errors import UsageError, as_written
from mom.interop.layers import read_block, write_block, write_module
from mom.metrics.names import pool_label
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.layout import PoolLayout


@dataclass(frozen=True)
class StagePlan:
    """The plain layers that a stage is built from.

    Attributes:
        modules: for each pool, the source layer of each module.
        anchor: the source layer of the anchor block; ``None`` without anchors.
    """

    modules: Mapping[str, tuple[int, ...]]
    anchor: int | None


@dataclass(frozen=True)
class UpcyclingPlan:
    """The source layer of each block and module; layers are counted from 0 over all blocks of the plain model."""

    bottom: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    top: tuple[int, ...]

    @classmethod
    def consecutive(cls, config: MoMConfig) -> UpcyclingPlan:
        """Use layers in order: bottom blocks, then the modules and anchor of each stage, then top blocks.

        A stage uses as many layers as its largest pool has modules; smaller pools use the first of them. A
        ``grouped`` pool uses one per round (:meth:`mom.model.layout.PoolLayout.layers`).
        """
        layers = iter(range(num_plain_layers(config)))

        def take(count: int) -> tuple[int, ...]:
            return tuple(next(layers) for _ in range(count))

        bottom = take(config.num_bottom_blocks)
        stages = []
        for _ in range(config.num_stages):
            own = take(num_module_layers(config))
            modules = {pool.name: tuple(own[i] for i in pool.layers()) for pool in copied_pools(config)}
            stages.append(StagePlan(modules, next(layers) if config.anchors else None))
        return cls(bottom, tuple(stages), take(config.num_top_blocks))

    def describe(self) -> list[tuple[str, str]]:
        """Return (blocks or modules, source layers) in the model's order, for display."""
        rows = [("bottom blocks", self.bottom)]
        for index, stage in enumerate(self.stages):
            rows += [
                (f"stage {index} {pool_label(name)} modules", layers)
                for name, layers in stage.modules.items()
            ]
            if stage.anchor is not None:
                rows.append((f"stage {index} anchor block", (stage.anchor,)))
        rows.append(("top blocks", self.top))
        return [(place, _listed(layers)) for place, layers in rows if layers]


def _listed(layers: tuple[int, ...]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))


def copied_pools(config: MoMConfig) -> tuple[PoolLayout, ...]:
    """Return the pools whose modules are copied from plain layers; modules of other kinds are initialized."""
    return tuple(layout for layout in config.pools() if layout.kind.in_plain_blocks)


def num_module_layers(config: MoMConfig) -> int:
    """Return the number of plain layers that a stage's modules are copied from."""
    return max((1 + max(layout.layers()) for layout in copied_pools(config)), default=0)


def num_plain_layers(config: MoMConfig) -> int:
    """Return the number of layers of the plain transformer that ``config`` is upcycled from."""
    per_stage = num_module_layers(config) + int(config.anchors)
    return config.num_bottom_blocks + config.num_stages * per_stage + config.num_top_blocks


def plain_config(config: MoMConfig) -> MoMConfig:
    """Return the configuration of the plain transformer that ``config`` is upcycled from, layer by layer in order."""
    changed = {
        "num_stages": 0,
        "num_bottom_blocks": num_plain_layers(config),
        "num_top_blocks": 0,
        "router_prior": "none",
    }
    return MoMConfig.from_dict({**config.to_dict(), **changed})


@torch.no_grad()
def upcycle(plain: MoMForCausalLM, config: MoMConfig, plan: UpcyclingPlan | None = None) -> MoMForCausalLM:
    """Build a Mixture-of-Modules model from a plain transformer, with new routers.

    Embeddings, blocks, and the final norm are copied; every module is a copy of the attention or feed-forward of a
    layer.

    Args:
        plain: a model with ``num_stages=0``.
        config: the model to build, with the same widths, vocabulary, and positions.
        plan: the source layers; ``None`` uses them in order.

    Raises:
        UsageError: the shapes or the number of layers do not fit.
    """
    if plain.config.num_stages:
        raise UsageError(
            f"init must be a plain transformer, got a model with {plain.config.num_stages} stage(s)"
        )
    _check_shapes(plain.config, config)
    blocks = [*plain.model.bottom, *plain.model.top]
    if plan is None:
        if len(blocks) != num_plain_layers(config):
            raise UsageError(
                f"init must have {num_plain_layers(config)} layers ({_layer_counts(config)}), got a plain transformer "
                f"with {len(blocks)}"
            )
        plan = UpcyclingPlan.consecutive(config)
    _check_plan(plan, config, len(blocks))

    layers = [read_block(block) for block in blocks]
    mom = MoMForCausalLM(config)
    nn.Module.to(mom, dtype=plain.dtype, device=plain.device)
    mom.model.embedding.load_state_dict(plain.model.embedding.state_dict())
    mom.model.norm.load_state_dict(plain.model.norm.state_dict())
    mom.lm_head.load_state_dict(plain.lm_head.state_dict())  # the embedding again if it is tied
    for block, layer in zip(mom.model.bottom, plan.bottom, strict=True):
        write_block(block, layers[layer])
    for stage, sources in zip(mom.model.stages, plan.stages, strict=True):
        for layout in copied_pools(config):
            pool = stage.get_submodule(layout.name).pool
            for index, layer in enumerate(sources.modules[layout.name]):
                write_module(pool, index, layers[layer][layout.kind.name])
        if sources.anchor is not None:
            write_block(stage.anchor, layers[sources.anchor])
    for block, layer in zip(mom.model.top, plan.top, strict=True):
        write_block(block, layers[layer])
    return mom.train(plain.training)


def build_plan(task: UpcycleConfig, config: MoMConfig, num_layers: int) -> UpcyclingPlan | None:
    """Build the plan that the task's options describe; return ``None`` for the default plan.

    Args:
        task: has the options ``layers`` and, for the default pools, ``<pool>_layers``.
        config: the model to build.
        num_layers: layers of the plain model.

    Raises:
        UsageError: a list has the wrong length or names a layer that does not exist.
    """
    own = {layout.name: getattr(task, f"{layout.name}_layers", None) for layout in copied_pools(config)}
    if task.layers is None and all(given is None for given in own.values()):
        return None
    default = UpcyclingPlan.consecutive(config)
    wanted = num_plain_layers(config)
    layers = list(range(wanted)) if task.layers is None else task.layers
    _check_layers("layers", layers, wanted, _layer_counts(config), num_layers)
    for layout in copied_pools(config):
        if (given := own[layout.name]) is not None:
            size = layout.num_modules * config.num_stages
            _check_layers(f"{layout.name}_layers", given, size, f"{layout.num_modules} per stage", num_layers)

    def modules(index: int, name: str, sources: tuple[int, ...]) -> tuple[int, ...]:
        """Return the source layers of a pool's modules."""
        given, size = own[name], len(sources)
        if given is None:
            return tuple(layers[i] for i in sources)
        return tuple(given[index * size : (index + 1) * size])

    stages = tuple(
        StagePlan(
            {name: modules(index, name, sources) for name, sources in stage.modules.items()},
            None if stage.anchor is None else layers[stage.anchor],
        )
        for index, stage in enumerate(default.stages)
    )
    return UpcyclingPlan(
        tuple(layers[i] for i in default.bottom), stages, tuple(layers[i] for i in default.top)
    )


def check_blocks(source: MoMConfig, config: MoMConfig) -> None:
    """Reject a model whose blocks compute another function with the same weights than those of ``init``.

    Args:
        source: configuration of the model in ``init``.
        config: configuration of the model to build.

    Raises:
        UsageError: for the first option that differs.
    """
    names = ["block", "num_heads", "layer_norm_epsilon", "qk_norm", "tie_word_embeddings"]
    _check_equal([*names, *(["rope_theta"] * source.components.rotary)], source, config)


def _check_shapes(plain: MoMConfig, config: MoMConfig) -> None:
    """Reject a model whose weights differ in shape or meaning from the plain model's."""
    _check_equal(["vocab_size", "max_positions", "d_model"], plain, config)
    check_blocks(plain, config)
    _check_equal(["ffn_width"], plain, config)
    for layout in copied_pools(config):
        given, wanted = layout.kind.projections(config), type(layout.kind)().projections(plain)
        if given != wanted:
            raise UsageError(
                f"model.pools.{layout.name} must have modules of the shapes of the blocks of init ({_shapes(wanted)}), "
                f"got {_shapes(given)}"
            )


def _shapes(projections: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {rows} x {columns}" for name, (rows, columns) in projections.items())


def _check_equal(names: Sequence[str], source: MoMConfig, config: MoMConfig) -> None:
    for name in names:
        given, wanted = getattr(config, name), getattr(source, name)
        if given != wanted:
            option = "d_ffn" if name == "ffn_width" else name
            raise UsageError(
                f"model.{option} must be {as_written(wanted)}, as in the model of init, got {as_written(given)}"
            )


def _check_plan(plan: UpcyclingPlan, config: MoMConfig, num_layers: int) -> None:
    """Reject a plan that does not fill the model exactly or that names a missing layer."""
    sizes = [
        ("bottom", len(plan.bottom), config.num_bottom_blocks),
        ("stages", len(plan.stages), config.num_stages),
        ("top", len(plan.top), config.num_top_blocks),
    ]
    used = [*plan.bottom, *plan.top]
    for index, stage in enumerate(plan.stages):
        for layout in copied_pools(config):
            sources = stage.modules.get(layout.name, ())
            sizes.append((f"stages[{index}].modules.{layout.name}", len(sources), layout.num_modules))
            used += sources
        sizes.append((f"stages[{index}].anchor", int(stage.anchor is not None), int(config.anchors)))
        used += [] if stage.anchor is None else [stage.anchor]
    for name, given, wanted in sizes:
        if given != wanted:
            raise UsageError(f"plan.{name} must have {wanted} entries, got {given}")
    for layer in used:
        if not 0 <= layer < num_layers:
            raise UsageError(f"plan must name layers between 0 and {num_layers - 1}, got {layer}")


def _check_layers(name: str, given: Sequence[int], length: int, counts: str, num_layers: int) -> None:
    if len(given) != length:
        raise UsageError(
            f"task.{name} must have {length} layers ({counts}), got {len(given)}: {as_written(given)}"
        )
    if not all(0 <= layer < num_layers for layer in given):
        raise UsageError(
            f"task.{name} must be layers of init, between 0 and {num_layers - 1}, got {as_written(given)}"
        )


def _layer_counts(config: MoMConfig) -> str:
    """Describe the plain layers that a model needs, in order."""
    anchor = " and an anchor" if config.anchors else ""
    return (
        f"{config.num_bottom_blocks} bottom, then for each of {config.num_stages} stage(s) "
        f"{num_module_layers(config)} modules{anchor}, then {config.num_top_blocks} top"
    )
