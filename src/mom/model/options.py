"""Every option of a model: type, default, range and help, declared once, without loading PyTorch.

Routers and module kinds declare options of their own in the same way (:func:`option` in their class); import
:mod:`mom.model.routers` and :mod:`mom.model.pools` first to have the built-in kinds.
"""

from __future__ import annotations

# ruff: noqa: RUF009 (`option` makes a dataclass field)
import keyword
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from mom.model.registry import InvalidOption, as_yaml, one_of
from mom.model.registry import pools as pool_kinds
from mom.model.registry import routers as router_kinds
from mom.model.schedules import PoolLayout


@dataclass(frozen=True)
class Components:
    """The parts of one kind of block.

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


def option(
    default: Any,
    help: str,
    *,
    group: str | None = "model",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    fill: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare an option as a dataclass field; its type is the annotation, with ``Literal`` for named choices.

    Args:
        default: its default.
        help: one line for users.
        group: the Hydra group it belongs to, ``model`` or ``router``; ``None`` for ``config.json`` only.
        ge: smallest value.
        gt: bound that the value must exceed.
        le: largest value.
        lt: bound that the value must stay below.
        fill: computes the value from the other options where it is null.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    return field(default=default, metadata={"help": help, "group": group, "bounds": bounds, "fill": fill})


@dataclass(frozen=True)
class Declared:
    """A declared option, as :func:`declared` reads it."""

    name: str
    type: Any
    default: Any
    help: str
    group: str | None
    bounds: Mapping[str, float]
    fill: Callable[[Any], Any] | None

    def check(self, value: Any, option: str = "") -> None:
        """Check type and range.

        Raises:
            InvalidOption: under the name ``option``, or the option's own.
        """
        if not _fits(value, self.type) or not self._in_range(value):
            if get_origin(self.type) is Literal:
                raise InvalidOption(option or self.name, value, one_of(value, get_args(self.type)))
            raise InvalidOption(option or self.name, value, f"must be {self.allowed()}")

    def _in_range(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        holds = {"ge": value.__ge__, "gt": value.__gt__, "le": value.__le__, "lt": value.__lt__}
        return math.isfinite(value) and all(holds[name](bound) for name, bound in self.bounds.items())

    def allowed(self) -> str:
        """Write the allowed values in words."""
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        bounds = " and ".join(f"{words[name]} {bound:g}" for name, bound in self.bounds.items())
        parts: list[str] = []
        for part in _parts(self.type):
            if part in (int, float):
                noun = "an integer" if part is int else "a number"
                parts.append(f"{noun} {'of ' if bounds.startswith('at') else ''}{bounds}".strip())
            elif part is bool:
                parts += ["true", "false"]
            elif get_origin(part) is Literal:
                parts += [as_yaml(choice) for choice in get_args(part)]
            elif part is types.NoneType:
                parts.append("null")
            else:
                name = get_origin(part) or part
                parts.append({str: "a string", list: "a list", dict: "a mapping"}[name])
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type; an integer is a number, but true is no integer."""
    for part in _parts(hint):
        origin = get_origin(part) or part
        if origin is Literal:
            fits = any(value == choice and type(value) is type(choice) for choice in get_args(part))
        elif isinstance(value, bool):
            fits = origin is bool
        else:
            fits = isinstance(value, {float: (int, float), list: (list, tuple)}.get(origin, origin))
        if fits:
            return True
    return False


@cache
def declared(owner: type) -> Mapping[str, Declared]:
    """Return the options that a dataclass declares, by name: :class:`ModelOptions`, a router or a module kind."""
    hints = get_type_hints(owner)
    return {
        one.name: Declared(one.name, hints[one.name], one.default, **one.metadata)
        for one in fields(owner)
        if "help" in one.metadata and one.default is not MISSING
    }


_Schedule = Literal["all", "layerwise", "grouped"]
_TopK = int | Literal["all"]


@dataclass(kw_only=True, repr=False)
class ModelOptions:
    """The options of a model, checked by :meth:`check_options`."""

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
    anchors: bool = option(True, "follow each stage with one plain block")
    pool_specs: list[str] | dict[str, Any] = option(
        ("attention", "ffn"), "the pools of a stage in the order of a round: kinds, or a mapping from names"
    )
    num_attention_modules: int = option(4, "attention modules in a stage's pool", ge=1)
    num_ffn_modules: int = option(4, "feed-forward modules in a stage's pool", ge=1)
    num_rounds: int = option(8, "rounds of assembly H in a stage", ge=1)
    top_k: _TopK = option(2, "choices K per step, SKIP included; all: every module for every token", ge=1)
    ffn_top_k: _TopK | None = option(None, "top_k of the feed-forward pool; null: top_k", ge=1)
    schedule: _Schedule = option(
        "all", "modules a round may choose: all; layerwise: module h mod N; grouped: an even share"
    )
    skip: bool = option(True, "let tokens choose SKIP, which does nothing")
    ffn_schedule: _Schedule | None = option(None, "schedule of the feed-forward pool; null: schedule")
    ffn_skip: bool | None = option(None, "skip of the feed-forward pool; null: skip")
    num_skip_slots: int = option(1, "router outputs that mean SKIP", group=None, ge=1)
    ffn_skip_slots: int | None = option(
        None, "num_skip_slots of the feed-forward pool; null: num_skip_slots", group=None, ge=1
    )
    weight_qkv: bool = option(False, "weight the chosen modules' q, k and v too, not only their outputs")
    skipped_kv: Literal["zero", "mask"] = option(
        "zero", "keys and values of tokens that skip attention: zero, or masked for all other tokens"
    )
    skip_rule: Literal["share", "first"] = option(
        "share", "share: SKIP takes its share of the weight; first: SKIP ranked first ends the step"
    )
    absorbing_skip: bool = option(False, "a token that ran no module skips the rest of the stage: early exit")
    dropout: float = option(0.0, "dropout of the embeddings and of each step's output", ge=0, lt=1)
    initializer_range: float = option(0.02, "standard deviation of the initial weights", gt=0)
    layer_norm_epsilon: float = option(1e-5, "epsilon of every norm", gt=0)

    router: str = option("gru", "router kind", group="router")
    temperature: float = option(0.2, "divides the router's logits before the softmax", group="router", gt=0)
    score_function: Literal["softmax", "identity"] = option(
        "softmax", "identity: raw router outputs are the scores", group=None
    )
    normalize_weights: bool | Literal["auto"] = option(
        "auto", "make the K weights sum to 1; auto: only for K > 1", group="router"
    )
    straight_through: bool = option(False, "use sign(weight), with the weight's gradient", group=None)
    router_prior: Literal["none", "ordered", "looped"] = option(
        "looped", "learned bias per round that starts by preferring module h, then SKIP", group="router"
    )
    router_prior_strength: float = option(
        5.0, "distance between neighbors in the prior, in units of the temperature", group="router", ge=0
    )
    balance_coefficient: float = option(0.01, "weight of the balance loss", group="router", ge=0)
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

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Make and check options from a mapping as users write it, options of router kinds included.

        Raises:
            InvalidOption: the first option that is unknown or cannot be.
        """
        names = {"pools" if name == "pool_specs" else name for name in declared(ModelOptions)}
        known = [*sorted(names), *kind_options()]
        for name, value in given.items():
            if name not in known:
                raise InvalidOption(name, value, f"is no option: it {one_of(name, known)}")
        options = cls()
        for name, value in given.items():
            setattr(options, "pool_specs" if name == "pools" else name, value)
        options.check_options()
        return options

    # Sizes that follow from the options.

    @property
    def components(self) -> Components:
        """The parts that ``block`` names."""
        return BLOCKS[self.block]

    @property
    def ffn_width(self) -> int:
        """Hidden width of a feed-forward module."""
        if self.d_ffn is not None:
            return self.d_ffn
        return math.ceil(self.d_model / 3) * 8 if self.components.gated else 4 * self.d_model

    @property
    def graph_depth(self) -> int:
        """Blocks a token passes at most: bottom + top + anchors + stages x rounds."""
        per_stage = self.num_rounds + int(self.anchors)
        return self.num_bottom_blocks + self.num_top_blocks + self.num_stages * per_stage

    @property
    def fixed_depth(self) -> int:
        """Blocks that every token passes whatever the routers choose: bottom + top + anchors."""
        return self.graph_depth - self.num_stages * self.num_rounds

    @property
    def num_attentions(self) -> int:
        """Attentions that a token passes, plain or assembled: the layers of its keys and values in a cache."""
        return (
            self.anchor_layer(self.num_stages - 1) + 1 + self.num_top_blocks
            if self.num_stages
            else self.graph_depth
        )

    def anchor_layer(self, stage: int) -> int:
        """Return the cache layer of a stage's anchor; without anchors, that of the last attention in the stage."""
        in_stage = self.num_rounds * sum(layout.kind.attends for layout in self.pools()) + int(self.anchors)
        return self.num_bottom_blocks + (stage + 1) * in_stage - 1

    def cache_layer(self, stage: int, round_index: int, layout: PoolLayout) -> int:
        """Return the cache layer of one step: those of attentions in order, then those of pools that stream."""
        kinds = [one.kind for one in self.pools()]
        before = kinds[: layout.place]
        if layout.kind.attends:
            attending = sum(kind.attends for kind in kinds)
            first = self.num_bottom_blocks + stage * (self.num_rounds * attending + int(self.anchors))
            return first + round_index * attending + sum(kind.attends for kind in before)
        streaming = sum(kind.streams for kind in kinds)
        rounds = stage * self.num_rounds + round_index
        return self.num_attentions + rounds * streaming + sum(kind.streams for kind in before)

    @property
    def num_cache_layers(self) -> int:
        """Layers of a cache: one for each attention, and one for each step of a pool that streams."""
        streaming = sum(layout.kind.streams for layout in self.pools()) if self.num_stages else 0
        return self.num_attentions + self.num_stages * self.num_rounds * streaming

    @property
    def router_kind(self) -> Any:
        """The kind that ``router`` names, with its options: a :class:`mom.model.routers.RouterKind`."""
        kind = router_kinds.find(self.router)
        given = {name: getattr(self, name) for name in declared(kind) if hasattr(self, name)}
        return kind(**given)

    def pools(self) -> tuple[PoolLayout, ...]:
        """Return the layouts of a stage's pools, in the order of a round."""
        router = self.router_kind
        return tuple(
            self._layout(name, spec, place, router) for place, (name, spec) in enumerate(self._named_specs())
        )

    def _named_specs(self) -> list[tuple[Any, Any]]:
        """Name and entry of each pool; ``pool_specs`` is a mapping, or a list of kinds or of entries with a name."""
        if isinstance(self.pool_specs, Mapping):
            return [(name, {} if spec is None else spec) for name, spec in self.pool_specs.items()]
        return [
            (one, {})
            if isinstance(one, str)
            else (one.get("name"), {k: v for k, v in one.items() if k != "name"})
            for one in self.pool_specs
        ]

    def _layout(self, name: str, spec: Mapping[str, Any], place: int, router: Any) -> PoolLayout:
        kind = pool_kinds.find(spec.get("kind", name), f"pools.{name}.kind")

        def value(key: str, default: Any) -> Any:
            """The pool's own value, or that of the flat option for its kind, such as ``ffn_top_k``."""
            flat = getattr(self, f"{kind.name}_{key}", None)
            own = spec.get(key, flat)
            return default if own is None else own

        return PoolLayout(
            name=name,
            kind=kind(**{one: spec[one] for one in declared(kind) if spec.get(one) is not None}),
            router=router,
            place=place,
            num_modules=spec.get("num_modules")
            or getattr(self, f"num_{kind.name}_modules", kind.num_modules),
            num_skip_slots=value("skip_slots", self.num_skip_slots),
            num_rounds=self.num_rounds,
            top_k=value("top_k", self.top_k),
            schedule=value("schedule", self.schedule),
            skip=value("skip", self.skip),
            skip_rule=self.skip_rule,
        )

    def as_mapping(self) -> dict[str, Any]:
        """Return every option that this model has, by the name that users write."""
        names = [*declared(ModelOptions), *declared(router_kinds.find(self.router))]
        values = {name: getattr(self, name) for name in names}
        return values | {"pools": self.pools_as_list(values.pop("pool_specs"))}

    @staticmethod
    def pools_as_list(specs: Any) -> list[Any]:
        """Return ``pool_specs`` as a list, whose order survives in files that sort the keys of mappings."""
        if not isinstance(specs, Mapping):
            return list(specs)
        return [{"name": name, **({} if spec is None else spec)} for name, spec in specs.items()]

    # Checks, in the order of the options.

    def check_options(self) -> None:
        """Fill in the options that follow from others, and check all.

        Raises:
            InvalidOption: the first option that cannot be.
        """
        for name, one in declared(ModelOptions).items():
            one.check(getattr(self, name), "pools" if name == "pool_specs" else "")
        for name, one in declared(router_kinds.find(self.router)).items():
            if getattr(self, name, one.default) is None and one.fill is not None:
                setattr(self, name, one.fill(self))
            elif not hasattr(self, name):
                setattr(self, name, one.default)
        for name, one in kind_options().items():
            if hasattr(self, name):
                one.check(getattr(self, name))
        if self.d_model % self.num_heads:
            raise InvalidOption(
                "d_model", self.d_model, f"must be a multiple of num_heads ({self.num_heads})"
            )
        if self.components.rotary and self.d_model // self.num_heads % 2:
            raise InvalidOption(
                "d_model",
                self.d_model,
                f"must be an even multiple of num_heads ({self.num_heads}) for rotary positions",
            )
        self._check_pool_specs()
        if self.num_stages:
            self._check_routing()

    def _check_pool_specs(self) -> None:
        specs = self.pool_specs
        if not specs:
            raise InvalidOption("pools", specs, "must name at least one pool")
        if not isinstance(specs, Mapping) and not all(isinstance(one, str | Mapping) for one in specs):
            raise InvalidOption("pools", specs, "must be a list of kinds, or a mapping from names")
        named = self._named_specs()
        if len({name for name, _ in named}) < len(named):
            raise InvalidOption("pools", specs, "must name each kind once; write a mapping for two of a kind")
        for name, given in named:
            if not _is_pool_name(name):
                raise InvalidOption(
                    "pools", name, f"must have names of lowercase letters, digits and _ other than {RESERVED}"
                )
            if not isinstance(given, Mapping):
                raise InvalidOption(f"pools.{name}", given, "must be a mapping")
            kind = pool_kinds.find(given.get("kind", name), f"pools.{name}.kind")
            known = _POOL_KEYS | dict(declared(kind))
            for key, value in given.items():
                if key != "kind" and key not in known:
                    raise InvalidOption(
                        f"pools.{name}.{key}", value, f"is no option: it {one_of(key, known)}"
                    )
                if key != "kind" and value is not None:
                    known[key].check(value, f"pools.{name}.{key}")

    def _check_routing(self) -> None:
        layouts, kind = self.pools(), self.router_kind
        for layout in layouts:
            most = layout.most_choices()
            if isinstance(layout.top_k, int) and layout.top_k > most:
                raise InvalidOption(
                    self._top_k_option(layout),
                    layout.top_k,
                    f"must be between 1 and {most}, the choices that every round of the {layout.name} pool has "
                    f"({layout.num_modules} modules, schedule {layout.schedule}, "
                    f"{'with' if layout.skip else 'without'} SKIP), or all",
                )
        if self.absorbing_skip and not any(layout.may_skip() for layout in layouts):
            raise InvalidOption(
                "absorbing_skip",
                True,
                "must be false if every token runs a module in every step: it requires skip, and a top_k of 1 or "
                "skip_rule first",
            )
        if not kind.learns:
            unlearned = {"router_prior": "none", "balance_bias_rate": 0, "depth_target": None}
            for name, allowed in unlearned.items():
                if getattr(self, name) != allowed:
                    raise InvalidOption(
                        name,
                        getattr(self, name),
                        f"must be {as_yaml(allowed)} with router {self.router}, which does not learn",
                    )
        if self.depth_target is not None:
            self._check_depth_target(self.depth_target, layouts)

    def _top_k_option(self, layout: PoolLayout) -> str:
        """The option that a pool's K comes from."""
        if dict(self._named_specs())[layout.name].get("top_k") is not None:
            return f"pools.{layout.name}.top_k"
        flat = f"{layout.kind.name}_top_k"
        return "top_k" if getattr(self, flat, None) is None else flat

    def _check_depth_target(self, target: float, layouts: tuple[PoolLayout, ...]) -> None:
        skipping = [layout.place for layout in layouts if layout.may_skip()]
        if not skipping and not any(
            layout.num_selected() == 1 or self.skip_rule == "first" for layout in layouts
        ):
            raise InvalidOption(
                "depth_target",
                target,
                f"must be null with top_k {self.top_k} and skip_rule {self.skip_rule}, where every token runs a "
                "module in every step",
            )
        steps = self.num_rounds * len(skipping)
        if self.absorbing_skip:  # a token that exits in the first step that allows it runs none after it
            steps = self.num_rounds * len(layouts) - skipping[0]
        least = self.graph_depth - self.num_stages * steps / len(layouts)
        if not least <= target <= self.graph_depth:
            raise InvalidOption(
                "depth_target", target, f"must be between {least:g} and {self.graph_depth}, or null"
            )


RESERVED = "anchor, dropout"
"""Names that a pool cannot have: a stage has them for other things."""

_NOT_POOLS = {*RESERVED.split(", "), "layouts", "training", "forward", "assemble", "count", "index"}


def _is_pool_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isidentifier()
        and name == name.lower()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
        and name not in _NOT_POOLS
    )


@dataclass(kw_only=True)
class _PoolKeys:
    """What a pool of ``pools`` may say of itself, next to its kind and that kind's own options."""

    num_modules: int = option(4, "modules in a stage's pool", ge=1)
    top_k: _TopK = option(2, "choices K per step; as the model's by default", ge=1)
    schedule: _Schedule = option("all", "modules a round may choose; as the model's by default")
    skip: bool = option(True, "let tokens choose SKIP; as the model's by default")


_POOL_KEYS = dict(declared(_PoolKeys))


def kind_options() -> dict[str, Declared]:
    """Return the options that the registered router kinds declare themselves, by name."""
    return {name: one for kind in router_kinds.values() for name, one in declared(kind).items()}


def options_of(group: str) -> dict[str, Declared]:
    """Return the options of a Hydra group, ``model`` or ``router``, by the name that users write."""
    every = {**declared(ModelOptions), **kind_options()}
    return {
        "pools" if name == "pool_specs" else name: one for name, one in every.items() if one.group == group
    }


def options_table() -> str:
    """Return all options as a Markdown table, for the documentation."""
    rows = [
        (f"`{group}.{name}`", one) for group in ("model", "router") for name, one in options_of(group).items()
    ]
    rows += [(f"`model.pools.<name>.{name}`", one) for name, one in _POOL_KEYS.items()]
    for kind in pool_kinds.values():
        rows += [(f"`model.pools.<name>.{name}` ({kind.name})", one) for name, one in declared(kind).items()]
    lines = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [f"| {name} | {as_yaml(one.default)} | {one.allowed()} | {one.help} |" for name, one in rows]
    return "\n".join(lines)
