"""Upcycling: phase 1's plain transformer, decomposed into the modules of phase 2 (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mom.config import UpcycleConfig
from mom.errors import RequestError
from mom.interop.layers import read_block, write_block, write_module
from mom.model import MoMConfig, MoMForCausalLM


@dataclass(frozen=True)
class StagePlan:
    """Which plain layers become what in one stage.

    Attributes:
        attention: the layer each attention module comes from.
        ffn: the layer each feed-forward module comes from.
        anchor: the layer the anchor block comes from; ``None`` without anchors.
    """

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    anchor: int | None


@dataclass(frozen=True)
class UpcyclingPlan:
    """Which plain layer goes where; layers are counted from 0 over all blocks of the plain model."""

    bottom: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    top: tuple[int, ...]

    @classmethod
    def consecutive(cls, config: MoMConfig) -> UpcyclingPlan:
        """Layers in order: bottom blocks, then for each stage its modules and its anchor, then top blocks.

        A stage takes as many layers as its larger pool has modules; the smaller pool takes the first of them. A
        ``grouped`` pool takes one for each round (:meth:`mom.model.schedules.PoolLayout.layers`).
        """
        layers = iter(range(num_plain_layers(config)))
        attention_layers, ffn_layers = (layout.layers() for layout in config.pools())

        def take(count: int) -> tuple[int, ...]:
            return tuple(next(layers) for _ in range(count))

        bottom = take(config.num_bottom_blocks)
        stages = []
        for _ in range(config.num_stages):
            modules = take(num_layers_of_modules(config))
            anchor = next(layers) if config.anchors else None
            attention = tuple(modules[layer] for layer in attention_layers)
            stages.append(StagePlan(attention, tuple(modules[layer] for layer in ffn_layers), anchor))
        return cls(bottom, tuple(stages), take(config.num_top_blocks))

    def describe(self) -> list[tuple[str, str]]:
        """(where, from which plain layers), in the model's order, for people to read."""
        rows = [("bottom blocks", _listed(self.bottom))] if self.bottom else []
        for index, stage in enumerate(self.stages):
            rows.append((f"stage {index} attention modules", _listed(stage.attention)))
            rows.append((f"stage {index} feed-forward modules", _listed(stage.ffn)))
            if stage.anchor is not None:
                rows.append((f"stage {index} anchor block", _listed((stage.anchor,))))
        return [*rows, ("top blocks", _listed(self.top))] if self.top else rows


def _listed(layers: tuple[int, ...]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))


def num_layers_of_modules(config: MoMConfig) -> int:
    """Layers of the plain transformer that the modules of one stage come from."""
    return 1 + max(max(layout.layers()) for layout in config.pools())


def num_plain_layers(config: MoMConfig) -> int:
    """Layers of the plain transformer that ``config`` is upcycled from."""
    per_stage = num_layers_of_modules(config) + int(config.anchors)
    return config.num_bottom_blocks + config.num_stages * per_stage + config.num_top_blocks


def plain_config(config: MoMConfig) -> MoMConfig:
    """The plain transformer whose layers, in order, become ``config``'s blocks and modules."""
    changed = {
        "num_stages": 0,
        "num_bottom_blocks": num_plain_layers(config),
        "num_top_blocks": 0,
        "router_prior": "none",
    }
    return MoMConfig.from_dict({**config.to_dict(), **changed})


@torch.no_grad()
def upcycle(plain: MoMForCausalLM, config: MoMConfig, plan: UpcyclingPlan | None = None) -> MoMForCausalLM:
    """Make an MoM of a plain transformer; the routers start fresh.

    Embeddings, blocks and the final LayerNorm are carried over; every module is a copy of one layer's attention
    or feed-forward.

    Args:
        plain: a model with ``num_stages=0``.
        config: what to make; same widths, vocabulary and positions.
        plan: which layer goes where; ``None`` takes them in order.

    Raises:
        RequestError: the shapes or the number of layers do not fit.
    """
    if plain.config.num_stages:
        raise RequestError(
            "init", f"a model with {plain.config.num_stages} stages", "a plain one (num_stages 0)"
        )
    shapes = ("vocab_size", "max_positions", "d_model", "num_heads", "block", "ffn_width")
    for name in (
        *shapes,
        "qk_norm",
        "tie_word_embeddings",
        *(["rope_theta"] * plain.config.components.rotary),
    ):
        given, wanted = getattr(plain.config, name), getattr(config, name)
        if given != wanted:
            option = "d_ffn" if name == "ffn_width" else name
            raise RequestError(f"model.{option}", wanted, f"{given}, as in the plain model it starts from")
    blocks = [*plain.model.bottom, *plain.model.top]
    if plan is None:
        wanted_layers = num_plain_layers(config)
        if len(blocks) != wanted_layers:
            raise RequestError(
                "init",
                f"a plain model of {len(blocks)} layers",
                f"one of {wanted_layers}: {config.num_bottom_blocks} bottom, {config.num_stages} stage(s) of "
                f"{num_layers_of_modules(config)} modules"
                f"{' and an anchor' if config.anchors else ''}, {config.num_top_blocks} top",
            )
        plan = UpcyclingPlan.consecutive(config)
    _check_plan(plan, config, len(blocks))

    layers = [read_block(block) for block in blocks]
    mom = MoMForCausalLM(config)
    nn.Module.to(mom, dtype=plain.dtype, device=plain.device)
    mom.model.embedding.load_state_dict(plain.model.embedding.state_dict())
    mom.model.norm.load_state_dict(plain.model.norm.state_dict())
    mom.lm_head.load_state_dict(plain.lm_head.state_dict())  # the embedding once more where it is tied
    for block, layer in zip(mom.model.bottom, plan.bottom, strict=True):
        write_block(block, layers[layer])
    for stage, sources in zip(mom.model.stages, plan.stages, strict=True):
        for index, layer in enumerate(sources.attention):
            write_module(stage.attention.pool, index, layers[layer].attention)
        for index, layer in enumerate(sources.ffn):
            write_module(stage.ffn.pool, index, layers[layer].ffn)
        if sources.anchor is not None:
            write_block(stage.anchor, layers[sources.anchor])
    for block, layer in zip(mom.model.top, plan.top, strict=True):
        write_block(block, layers[layer])
    return mom.train(plain.training)


def _check_plan(plan: UpcyclingPlan, config: MoMConfig, num_layers: int) -> None:
    """Refuse a plan that does not fill the model exactly or names a layer that is not there."""
    sizes = [
        ("bottom", len(plan.bottom), config.num_bottom_blocks),
        ("stages", len(plan.stages), config.num_stages),
        ("top", len(plan.top), config.num_top_blocks),
    ]
    used = [*plan.bottom, *plan.top]
    for index, stage in enumerate(plan.stages):
        sizes.append((f"stages[{index}].attention", len(stage.attention), config.num_attention_modules))
        sizes.append((f"stages[{index}].ffn", len(stage.ffn), config.num_ffn_modules))
        sizes.append((f"stages[{index}].anchor", int(stage.anchor is not None), int(config.anchors)))
        used += [*stage.attention, *stage.ffn, *([] if stage.anchor is None else [stage.anchor])]
    for name, given, wanted in sizes:
        if given != wanted:
            raise RequestError(f"plan.{name}", f"{given} entries", f"{wanted}")
    for layer in used:
        if not 0 <= layer < num_layers:
            raise RequestError("plan", f"layer {layer}", f"a layer from 0 to {num_layers - 1}")


def plan_of(task: UpcycleConfig, config: MoMConfig, num_layers: int) -> UpcyclingPlan | None:
    """The plan that the task's options describe; ``None``, the plan by default, where there are none.

    Args:
        task: the options.
        config: the model to be made.
        num_layers: of the plain model.

    Raises:
        RequestError: a list of the wrong length, or a layer that is not there.
    """
    if task.layers is None and task.attention_layers is None and task.ffn_layers is None:
        return None
    plan = UpcyclingPlan.consecutive(config)
    wanted = num_plain_layers(config)
    layers = _checked_layers(
        "layers",
        list(range(wanted)) if task.layers is None else task.layers,
        wanted,
        f"{config.num_bottom_blocks} bottom, then for each of {config.num_stages} stage(s) "
        f"{num_layers_of_modules(config)} modules"
        f"{' and an anchor' if config.anchors else ''}, then {config.num_top_blocks} top",
        num_layers,
    )

    def modules(name: str, given: list[int] | None, size: int) -> list[tuple[int, ...]]:
        """Per stage, where the modules of one pool come from."""
        if given is None:
            return [tuple(layers[i] for i in getattr(stage, name)) for stage in plan.stages]
        sources = _checked_layers(
            f"{name}_layers", given, size * config.num_stages, f"{size} for each stage", num_layers
        )
        return [tuple(sources[start : start + size]) for start in range(0, len(sources), size)]

    attention = modules("attention", task.attention_layers, config.num_attention_modules)
    ffn = modules("ffn", task.ffn_layers, config.num_ffn_modules)
    stages = tuple(
        StagePlan(attention[index], ffn[index], None if stage.anchor is None else layers[stage.anchor])
        for index, stage in enumerate(plan.stages)
    )
    return UpcyclingPlan(tuple(layers[i] for i in plan.bottom), stages, tuple(layers[i] for i in plan.top))


def _checked_layers(name: str, given: list[int], length: int, of_what: str, num_layers: int) -> list[int]:
    """A list of layers, checked."""
    shown = "[" + ",".join(map(str, given)) + "]"
    if len(given) != length:
        raise RequestError(f"task.{name}", f"{shown} ({len(given)} layers)", f"{length} layers: {of_what}")
    if not all(0 <= layer < num_layers for layer in given):
        raise RequestError(f"task.{name}", shown, f"layers from 0 to {num_layers - 1}, those of init")
    return given
