"""All options of a model with type, default, range, and help, readable without PyTorch.

Kinds of routers and modules declare their own options in the same way; import :mod:`mom.model.routers` and
:mod:`mom.model.pools` first to register the built-in kinds.
"""

from __future__ import annotations

# ruff: noqa: RUF009 (`option` and `routed` make a dataclass field)
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mom.model.declaration import Declared, declared, option
from mom.model.layout import (
    ENTRY_OPTIONS,
    PoolLayout,
    Schedule,
    TopK,
    entries_as_list,
    named_entries,
)
from mom.model.registry import as_yaml
from mom.model.registry import pools as pool_kinds
from mom.model.registry import routers as router_kinds


@dataclass(frozen=True)
class Components:
    """The components of a kind of block.

    Attributes:
        rms_norm: norms are RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), without shift; else LayerNorm.
        rotary: positions rotate queries and keys (RoPE, Su et al. 2021, arXiv 2104.09864); else they are learned
            and added to the token embeddings.
        gated: the feed-forward is SwiGLU (Shazeer 2020, arXiv 2002.05202); else tanh-GELU.
        bias: projections have biases.
    """

    rms_norm: bool
    rotary: bool
    gated: bool
    bias: bool


BLOCKS = {
    "gpt2": Components(rms_norm=False, rotary=False, gated=False, bias=True),
    "llama": Components(rms_norm=True, rotary=True, gated=True, bias=False),
}
"""Values of the option ``block``."""

routed = partial(option, routed=True)
"""Declares an option that has no effect without stages."""


@dataclass(kw_only=True, repr=False)
class ModelOptions:
    """The options of a model, which :func:`mom.model.rules.check_options` checks."""

    vocab_size: int = option(50257, "tokens in the vocabulary", ge=1)
    max_positions: int = option(1024, "positions: the longest sequence, in tokens", ge=1)
    d_model: int = option(768, "width D of the residual stream", ge=1)
    num_heads: int = option(12, "attention heads; must divide d_model", ge=1)
    d_ffn: int | None = option(
        None, "hidden width of a feed-forward; null: 4 * d_model, or 8/3 * d_model with SwiGLU", ge=1
    )
    block: Literal["gpt2", "llama"] = option(
        "gpt2", "gpt2: LayerNorm, learned positions, GELU, biases; llama: RMSNorm, rotary positions, SwiGLU"
    )
    qk_norm: bool = option(False, "normalize each head's queries and keys, module by module")
    rope_theta: float = option(10000.0, "base of the rotary positions' angles", gt=0)
    tie_word_embeddings: bool = option(True, "use the token embedding as output head")
    num_bottom_blocks: int = option(2, "plain blocks before the stages", ge=0)
    num_top_blocks: int = option(1, "plain blocks after the stages", ge=0)
    num_stages: int = option(1, "stages, each with its own pools and routers; 0: a plain transformer", ge=0)
    anchors: bool = routed(True, "follow each stage with one plain block")
    pool_specs: list[str] | dict[str, Any] = routed(
        ("attention", "ffn"), "the pools of a stage in the order of a round: kinds, or a mapping from names"
    )
    num_attention_modules: int = routed(4, "attention modules in a stage's pool", ge=1)
    num_ffn_modules: int = routed(4, "feed-forward modules in a stage's pool", ge=1)
    num_rounds: int = routed(8, "rounds of assembly H in a stage", ge=1)
    top_k: TopK = routed(2, "choices K per step, SKIP included; all: every module for every token", ge=1)
    ffn_top_k: TopK | None = routed(None, "top_k of the feed-forward pool; null: top_k", ge=1)
    schedule: Schedule = routed(
        "all", "modules a round may choose: all; layerwise: module h mod N; grouped: an even share"
    )
    skip: bool = routed(True, "let tokens choose SKIP, which does nothing")
    ffn_schedule: Schedule | None = routed(None, "schedule of the feed-forward pool; null: schedule")
    ffn_skip: bool | None = routed(None, "skip of the feed-forward pool; null: skip")
    num_skip_slots: int = routed(1, "router outputs that mean SKIP", group=None, ge=1)
    ffn_skip_slots: int | None = routed(
        None, "num_skip_slots of the feed-forward pool; null: num_skip_slots", group=None, ge=1
    )
    weight_qkv: bool = routed(False, "weight the chosen modules' q, k and v too, not only their outputs")
    skipped_kv: Literal["zero", "mask"] = routed(
        "zero", "keys and values of tokens that skip attention: zero, or masked for all other tokens"
    )
    skip_rule: Literal["share", "first"] = routed(
        "share", "share: SKIP takes its share of the weight; first: SKIP ranked first ends the step"
    )
    absorbing_skip: bool = routed(False, "a token that ran no module skips the rest of the stage: early exit")
    capacity: float | None = routed(
        None,
        "expert choice: share of a sequence's tokens that each module of a pool with SKIP takes in training; null: "
        "tokens choose",
        gt=0,
        le=1,
    )
    capacity_coefficient: float = routed(
        0.1, "weight of the loss by which routers learn to predict what modules take", ge=0
    )
    dropout: float = option(0.0, "dropout of the embeddings and of each step's output", ge=0, lt=1)
    initializer_range: float = option(0.02, "standard deviation of the initial weights", gt=0)
    layer_norm_epsilon: float = option(1e-5, "epsilon of every norm", gt=0)

    router: str = option("linear", "router kind", group="router")
    temperature: float = option(1.0, "divides the router's logits before the softmax", group="router", gt=0)
    skip_bias: float = option(
        -3.0,
        "initial logit of SKIP over temperature, 0 with a capacity; below 0, tokens rarely skip at first",
        group="router",
    )
    skip_exploration: float = option(
        0.5,
        "share of the sequences of a training batch in which no token may skip, so that modules keep learning",
        group="router",
        ge=0,
        lt=1,
    )
    skip_trials: float = option(
        0.1,
        "share of the steps of the other sequences that run a module or SKIP at random, from which SKIP learns",
        group="router",
        ge=0,
        le=1,
    )
    skip_price: float = option(
        0.005,
        "price of running a module, as a fraction of the mean absolute effect of a trial on the loss",
        group="router",
        ge=0,
    )
    score_function: Literal["softmax", "identity"] = option(
        "softmax", "identity: raw router outputs are the scores, never normalized", group=None
    )
    normalize_weights: bool | Literal["auto"] = option(
        "auto",
        "make the K weights sum to 1; auto: unless raw scores or a capacity weight them, and K = 1 keeps a gradient",
        group="router",
    )
    straight_through: bool = option(False, "use sign(weight), with the weight's gradient", group=None)
    router_prior: Literal["none", "cyclic", "ordered", "looped", "hashed"] = option(
        "cyclic",
        "learned bias per round that starts by preferring: cyclic: the modules in turn; ordered, looped: module h, "
        "then SKIP, as a plain transformer; hashed: a fixed bias for a random module per token ID and round",
        group="router",
    )
    router_prior_strength: float = option(
        1.0, "distance between neighbors in the prior, in units of the temperature", group="router", ge=0
    )
    settle_steps: int | None = option(
        None,
        "training steps after which each token ID keeps the module that it took most often; null: never",
        group="router",
        ge=1,
    )
    balance_coefficient: float = option(0.0, "weight of the balance loss", group="router", ge=0)
    balance_skip: bool = option(True, "balance SKIP among the choices", group="router")
    balance_scope: Literal["microbatch", "global"] = option(
        "microbatch", "tokens balanced together: of one process, or of all", group="router"
    )
    balance_bias_rate: float = option(
        0.0, "step of the selection bias that balances without a loss; 0: no bias", group="router", ge=0
    )
    z_loss_coefficient: float = option(0.0, "weight of the router z-loss", group="router", ge=0)
    depth_target: float | None = option(
        None, "average effective depth to train towards, in blocks; null: no target", group="router"
    )
    depth_coefficient: float = option(
        1.0, "weight of the penalty on the distance to depth_target", group="router", ge=0
    )

    # Sizes that follow from the options.

    @property
    def components(self) -> Components:
        """The components that ``block`` selects."""
        return BLOCKS[self.block]

    @property
    def ffn_width(self) -> int:
        """Hidden width of a feed-forward module."""
        if self.d_ffn is not None:
            return self.d_ffn
        return math.ceil(self.d_model / 3) * 8 if self.components.gated else 4 * self.d_model

    @property
    def graph_depth(self) -> int:
        """Maximum number of blocks that a token passes: bottom + top + anchors + stages x rounds."""
        per_stage = self.num_rounds + int(self.anchors)
        return self.num_bottom_blocks + self.num_top_blocks + self.num_stages * per_stage

    @property
    def fixed_depth(self) -> int:
        """Blocks that every token passes regardless of the routers: bottom + top + anchors."""
        return self.graph_depth - self.num_stages * self.num_rounds

    def _attentions_per_stage(self) -> int:
        """Return the number of attentions that a token passes in a stage, including its anchor's."""
        return self.num_rounds * sum(layout.kind.attends for layout in self.pools()) + int(self.anchors)

    @property
    def num_attentions(self) -> int:
        """Number of attentions that a token passes, plain or assembled; each has a cache layer."""
        in_stages = self.num_stages * self._attentions_per_stage() if self.num_stages else 0
        return self.num_bottom_blocks + in_stages + self.num_top_blocks

    def anchor_layer(self, stage: int) -> int:
        """Return the cache layer of a stage's anchor; without anchors, that of the last attention in the stage."""
        return self.num_bottom_blocks + (stage + 1) * self._attentions_per_stage() - 1

    def cache_layers(self, stage: int, layout: PoolLayout) -> list[int]:
        """Return the cache layer of each step of a pool in a stage.

        The first layers are those of attentions in order, the others those of pools that stream.
        """
        attends = layout.kind.attends
        layers = [pool.kind.attends if attends else pool.kind.streams for pool in self.pools()]
        if attends:
            start = self.num_bottom_blocks + stage * self._attentions_per_stage()
        else:
            start = self.num_attentions + stage * self.num_rounds * sum(layers)
        first = start + sum(layers[: layout.position])
        return [first + h * sum(layers) for h in range(self.num_rounds)]

    @property
    def num_cache_layers(self) -> int:
        """Number of cache layers: one for each attention, and one for each step of a pool that streams."""
        streaming = sum(layout.kind.streams for layout in self.pools()) if self.num_stages else 0
        return self.num_attentions + self.num_stages * self.num_rounds * streaming

    @property
    def router_kind(self) -> Any:
        """The router kind with its options, a :class:`mom.model.routers.RouterKind`."""
        kind = router_kinds.find(self.router)
        given = {name: getattr(self, name) for name in declared(kind) if hasattr(self, name)}
        return kind(**given)

    def pools(self) -> tuple[PoolLayout, ...]:
        """Return the layouts of a stage's pools, in the order of a round."""
        named = enumerate(named_entries(self.pool_specs))
        return tuple(self._layout(name, entry, position) for position, (name, entry) in named)

    def _layout(self, name: str, entry: Mapping[str, Any], position: int) -> PoolLayout:
        kind = pool_kinds.find(entry.get("kind", name), f"pools.{name}.kind")

        def value(key: str) -> Any:
            """Return the value in the pool's entry, else that of its kind, such as ``ffn_top_k``, else the model's."""
            flat = getattr(self, f"{kind.name}_{key}", None)
            own = entry.get(key, flat)
            return getattr(self, key) if own is None else own

        num_modules = getattr(self, f"num_{kind.name}_modules", kind.num_modules)
        return PoolLayout(
            name=name,
            kind=kind(**{key: entry[key] for key in declared(kind) if entry.get(key) is not None}),
            router=self.router_kind,
            position=position,
            num_modules=entry.get("num_modules") or num_modules,
            num_skip_slots=getattr(self, f"{kind.name}_skip_slots", None) or self.num_skip_slots,
            num_rounds=self.num_rounds,
            top_k=value("top_k"),
            schedule=value("schedule"),
            skip=value("skip"),
            skip_rule=self.skip_rule,
            capacity=value("capacity") if value("skip") and self.router_kind.learns else None,
        )

    def as_mapping(self) -> dict[str, Any]:
        """Return all options of the model, by the name that users write."""
        names = [*declared(ModelOptions), *declared(router_kinds.find(self.router))]
        values = {name: getattr(self, name) for name in names}
        return values | {"pools": entries_as_list(values.pop("pool_specs"))}


def kind_options() -> dict[str, Declared]:
    """Return the options that the registered router kinds declare, by name."""
    options: dict[str, Declared] = {}
    for kind in router_kinds.values():
        options |= declared(kind)
    return options


def options_of(group: str) -> dict[str, Declared]:
    """Return the options of a Hydra group, ``model`` or ``router``, by the name that users write."""
    options = {**declared(ModelOptions), **kind_options()}
    options = {"pools" if name == "pool_specs" else name: found for name, found in options.items()}
    return {name: found for name, found in options.items() if found.group == group}


def options_table() -> str:
    """Return all options as a Markdown table, for the documentation."""
    entry = "model.pools.<name>"
    rows = {
        f"`{group}.{name}`": found
        for group in ("model", "router")
        for name, found in options_of(group).items()
    }
    rows |= {f"`{entry}.{name}`": found for name, found in ENTRY_OPTIONS.items()}
    for kind in pool_kinds.values():
        rows |= {f"`{entry}.{name}` ({kind.name})": found for name, found in declared(kind).items()}
    lines = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    for name, found in rows.items():
        lines.append(f"| {name} | {as_yaml(found.default)} | {found.allowed()} | {found.help} |")
    return "\n".join(lines)
