"""The configuration of a Mixture-of-Modules language model, checked when it is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from mom.model.components import BLOCKS, Components

if TYPE_CHECKING:
    from mom.model.schedules import PoolLayout

ROUTERS = ("gru", "mlp", "linear", "sequential", "random")
SCHEDULES = ("all", "layerwise", "grouped")
ROUTER_PRIORS = ("none", "ordered", "looped")
BALANCE_SCOPES = ("microbatch", "global")
SCORE_FUNCTIONS = ("softmax", "identity")


class MoMConfig(PreTrainedConfig):
    """What a Mixture-of-Modules model is made of (Gong et al. 2024, arXiv 2407.06677).

    The order of computation is: embeddings, ``num_bottom_blocks`` plain GPT-2 blocks, then for each of
    ``num_stages`` stages ``num_rounds`` rounds of assembly over that stage's own pools followed by one plain
    anchor block if ``anchors``, then ``num_top_blocks`` plain blocks, the final LayerNorm and the tied head.
    A plain GPT-2 has ``num_stages=0`` and all its layers as bottom blocks.

    Args:
        vocab_size: tokens in the vocabulary.
        max_positions: learned positions, the longest sequence.
        d_model: width D of the residual stream.
        num_heads: attention heads; must divide ``d_model``.
        d_ffn: hidden width of a feed-forward module; ``None`` means ``4 * d_model``, or with SwiGLU as many parameters
            in three matrices as that has in two: ``8/3 * d_model``, rounded up to a multiple of 8.
        block: what blocks and modules are made of (:data:`mom.model.components.BLOCKS`): ``gpt2`` (LayerNorm, learned
            positions, tanh-GELU, biases) or ``llama`` (RMSNorm, rotary positions, SwiGLU, no biases).
        qk_norm: normalise each head's queries and keys, module by module.
        rope_theta: base of the rotary positions' angles.
        tie_word_embeddings: the output head is the token embedding.
        num_bottom_blocks: plain blocks before the stages.
        num_top_blocks: plain blocks after the stages.
        num_stages: stages, each with its own pools and routers.
        anchors: whether one plain block follows each stage.
        num_attention_modules: attention modules N_A in a stage's pool.
        num_ffn_modules: feed-forward modules N_F in a stage's pool.
        num_rounds: rounds of assembly H in a stage.
        top_k: choices K per step, SKIP included, or ``"all"`` for every choice of the pool: the authors'
            all-paths mode, where every module runs for every token.
        ffn_top_k: ``top_k`` of the feed-forward pool; ``None`` means the same as the attention pool's.
        schedule: which modules a round may choose (:mod:`mom.model.schedules`): ``all`` of them, ``layerwise``
            (round h only module h mod N) or ``grouped`` (the pool split evenly over the rounds, in order).
        skip: whether SKIP may be chosen.
        ffn_schedule: ``schedule`` of the feed-forward pool; ``None`` means the same as the attention pool's.
        ffn_skip: ``skip`` of the feed-forward pool; ``None`` means the same as the attention pool's.
        router: ``gru`` (the paper's), ``mlp``, ``linear``, ``sequential`` (round h takes module h mod N) or
            ``random`` (a fixed choice per token id and round); :mod:`mom.model.routers`.
        router_dim: state size of ``gru`` and hidden size of ``mlp``; ``None`` means the paper's 256, or half of
            ``d_model`` where that is less.
        temperature: divides the router's logits before the softmax.
        score_function: ``softmax``, or ``identity`` where the raw router outputs are the scores.
        normalize_weights: renormalise the K chosen scores to sum to 1; ``"auto"`` does so only for K > 1, since
            at K = 1 every weight would be exactly 1 and the router would get no gradient from the loss.
        straight_through: use sign(weight) going forward and pass the gradient, clamped to [-1, 1], to the
            weight (``use_ste`` of the authors' code).
        num_skip_slots: router outputs that mean SKIP. The authors' routers have ``max(N_A, N_F) + 1`` outputs in
            both pools; the ones a pool has no module for are SKIP. Kept for their checkpoints.
        ffn_skip_slots: the same for the feed-forward pool; ``None`` means the same as the attention pool's.
        router_prior: a learned bias per round on the router's logits: ``none``, ``ordered`` (round h prefers
            module h, SKIP second; rounds after the last module prefer SKIP) or ``looped`` (the same, and the
            rounds after the last module walk the pool again in order, behind SKIP).
        router_prior_strength: distance between neighbours in that preference, in units of the temperature.
        weight_qkv: weight q, k and v of the chosen modules too, not only their outputs.
        skipped_kv: what others see of a token that took no attention module in a round: ``zero`` (key and value
            0, still attended to, as in the authors' code) or ``mask`` (nobody else attends to it).
        skip_rule: ``share`` (SKIP takes its share of the weight, the other choices still run) or ``first`` (a
            token leaves the step when SKIP ranks first).
        absorbing_skip: a token that took no module in a step takes none in any later step of the stage: early exit.
            Where tokens can leave steps: with SKIP, and ``top_k`` 1 or ``skip_rule: first``.
        dropout: on the embeddings and on each step's output.
        module_dropout: probability that a module is dropped in training; of the modules that a round may choose
            one always stays.
        module_dropout_per: ``sequence`` (a module is there or not for a sequence's tokens and a stage's rounds
            together) or ``token`` (drawn for each token).
        balance_coefficient: weight of the balance loss.
        balance_skip: count SKIP among the choices that are to be balanced.
        balance_scope: whose tokens are balanced together in training: those of one process's ``microbatch``,
            or of all processes (``global``). Either way each micro-batch of an accumulation window counts
            alone.
        balance_bias_rate: what a choice's bias moves by after each optimiser step, up where it was taken less
            than the mean and down where more: balancing without a loss. The bias counts in choosing, not in
            weights. 0: there is none. In training the step is taken by :class:`mom.callbacks.BalanceBias`.
        z_loss_coefficient: weight of the router z-loss.
        depth_target: average effective depth to train towards, in blocks (:func:`mom.model.depth_target.depth_loss`);
            ``None``: whatever comes. A number where tokens can leave steps: with SKIP, and ``top_k`` 1 or
            ``skip_rule: first``.
        depth_coefficient: weight of the penalty on the distance to ``depth_target``.
        initializer_range: standard deviation of initial weights; projections into the residual stream are
            divided by ``sqrt(2 * graph_depth)``.
        layer_norm_epsilon: epsilon of every LayerNorm.

    Raises:
        ValueError: ``"<field>: <given>; <allowed>"``, for the first field that cannot be.
    """

    model_type = "mom"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "routing"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "max_position_embeddings": "max_positions",
        "num_attention_heads": "num_heads",
    }

    vocab_size: int = 50257
    max_positions: int = 1024
    d_model: int = 768
    num_heads: int = 12
    d_ffn: int | None = None
    block: str = "gpt2"
    qk_norm: bool = False
    rope_theta: float = 10000.0
    num_bottom_blocks: int = 2
    num_top_blocks: int = 1
    num_stages: int = 1
    anchors: bool = True
    num_attention_modules: int = 4
    num_ffn_modules: int = 4
    num_rounds: int = 8
    top_k: int | str = 2
    ffn_top_k: int | str | None = None
    schedule: str = "all"
    skip: bool = True
    ffn_schedule: str | None = None
    ffn_skip: bool | None = None
    router: str = "gru"
    router_dim: int | None = None
    temperature: float = 1.0
    score_function: str = "softmax"
    normalize_weights: bool | str = "auto"
    straight_through: bool = False
    num_skip_slots: int = 1
    ffn_skip_slots: int | None = None
    router_prior: str = "none"
    router_prior_strength: float = 5.0
    weight_qkv: bool = False
    skipped_kv: str = "zero"
    skip_rule: str = "share"
    absorbing_skip: bool = False
    dropout: float = 0.0
    module_dropout: float = 0.0
    module_dropout_per: str = "sequence"
    balance_coefficient: float = 0.01
    balance_skip: bool = True
    balance_scope: str = "microbatch"
    balance_bias_rate: float = 0.0
    z_loss_coefficient: float = 0.0
    depth_target: float | None = None
    depth_coefficient: float = 1.0
    initializer_range: float = 0.02
    layer_norm_epsilon: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Written into config.json for the ecosystem; here it follows from the other fields.
        kwargs.pop("num_hidden_layers", None)
        super().__post_init__(**kwargs)
        self._check()
        self.router_dim = self.router_width
        self.num_hidden_layers = self.graph_depth

    @property
    def graph_depth(self) -> int:
        """Blocks a token passes: bottom + top + anchors + stages x rounds. Also the layers of a KV cache."""
        per_stage = self.num_rounds + int(self.anchors)
        return self.num_bottom_blocks + self.num_top_blocks + self.num_stages * per_stage

    @property
    def fixed_depth(self) -> int:
        """Blocks that every token passes whatever the routers choose: bottom + top + anchors."""
        return self.graph_depth - self.num_stages * self.num_rounds

    @property
    def ffn_width(self) -> int:
        """Hidden width of a feed-forward module."""
        if self.d_ffn is not None:
            return self.d_ffn
        return math.ceil(self.d_model / 3) * 8 if self.components.gated else 4 * self.d_model

    @property
    def components(self) -> Components:
        """What ``block`` stands for."""
        return BLOCKS[self.block]

    @property
    def router_width(self) -> int:
        """``router_dim`` as a number."""
        return max(1, min(256, self.d_model // 2)) if self.router_dim is None else self.router_dim

    def may_leave(self, layout: PoolLayout) -> bool:
        """Whether a token can take no module in a step of this pool: SKIP may hold all K places."""
        alone = layout.num_selected() == 1 or self.skip_rule == "first"
        return layout.skip and alone and self.router != "sequential"

    def _check(self) -> None:
        """Refuse the first field that cannot be; the order is that of the fields."""
        self._check_ranges()
        self._check_choices()
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model: {self.d_model}; a multiple of num_heads ({self.num_heads})")
        if self.components.rotary and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"d_model: {self.d_model}; an even multiple of num_heads ({self.num_heads}), for rotary positions"
            )
        if self.num_stages:
            self._check_routing()

    def _check_ranges(self) -> None:
        counts: tuple[str, ...] = (
            "vocab_size",
            "max_positions",
            "d_model",
            "num_heads",
            "num_attention_modules",
        )
        counts += ("num_ffn_modules", "num_rounds", "num_skip_slots")
        least = dict.fromkeys(counts, 1)
        least |= dict.fromkeys(("num_bottom_blocks", "num_top_blocks", "num_stages"), 0)
        least |= {
            name: 1 for name in ("d_ffn", "router_dim", "ffn_skip_slots") if getattr(self, name) is not None
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}: {value!r}; an integer of at least {lowest}")
        for name in (
            "qk_norm",
            "anchors",
            "skip",
            "weight_qkv",
            "straight_through",
            "absorbing_skip",
            "balance_skip",
            "tie_word_embeddings",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {getattr(self, name)!r}; true or false")
        if self.ffn_skip is not None and not isinstance(self.ffn_skip, bool):
            raise ValueError(f"ffn_skip: {self.ffn_skip!r}; true, false or null")
        for name, allowed, fits in (
            ("rope_theta", "a number above 0", lambda value: value > 0),
            ("temperature", "a number above 0", lambda value: value > 0),
            ("dropout", "a number from 0 up to, not including, 1", lambda value: 0 <= value < 1),
            ("module_dropout", "a number from 0 up to, not including, 1", lambda value: 0 <= value < 1),
            ("router_prior_strength", "a number of at least 0", lambda value: value >= 0),
            ("balance_coefficient", "a number of at least 0", lambda value: value >= 0),
            ("balance_bias_rate", "a number of at least 0", lambda value: value >= 0),
            ("z_loss_coefficient", "a number of at least 0", lambda value: value >= 0),
            ("depth_coefficient", "a number of at least 0", lambda value: value >= 0),
            ("initializer_range", "a number above 0", lambda value: value > 0),
            ("layer_norm_epsilon", "a number above 0", lambda value: value > 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise ValueError(f"{name}: {value!r}; {allowed}")

    def _check_choices(self) -> None:
        for name, allowed in (
            ("block", tuple(BLOCKS)),
            ("schedule", SCHEDULES),
            ("ffn_schedule", (*SCHEDULES, None)),
            ("router", ROUTERS),
            ("score_function", SCORE_FUNCTIONS),
            ("normalize_weights", ("auto", True, False)),
            ("router_prior", ROUTER_PRIORS),
            ("skipped_kv", ("zero", "mask")),
            ("skip_rule", ("share", "first")),
            ("module_dropout_per", ("sequence", "token")),
            ("balance_scope", BALANCE_SCOPES),
        ):
            value = getattr(self, name)
            if value not in allowed or (isinstance(value, int) and not isinstance(value, bool)):
                words = ", ".join("null" if one is None else str(one).lower() for one in allowed)
                raise ValueError(f"{name}: {value!r}; one of {words}")

    def _check_routing(self) -> None:
        from mom.model.schedules import PoolLayout  # here, since a layout is built from a configuration

        layouts = (PoolLayout.attention(self), PoolLayout.ffn(self))
        for layout, name in zip(
            layouts, ("top_k", "top_k" if self.ffn_top_k is None else "ffn_top_k"), strict=True
        ):
            most = layout.most_choices(self.router)
            top_k = layout.top_k
            if isinstance(top_k, bool) or not (isinstance(top_k, int) or top_k == "all"):
                raise ValueError(f"{name}: {top_k!r}; an integer of at least 1, or all")
            if isinstance(top_k, int) and not 1 <= top_k <= most:
                raise ValueError(
                    f"{name}: {top_k}; an integer from 1 to {most}, the choices that every round of the "
                    f"{layout.name} pool has ({layout.num_modules} modules, schedule {layout.schedule}, "
                    f"{'with' if layout.skip else 'without'} SKIP), or all"
                )
        if self.absorbing_skip and not any(map(self.may_leave, layouts)):
            raise ValueError(
                "absorbing_skip: true; false where every token takes a module in every step: it needs skip, and "
                "top_k 1 or skip_rule first"
            )
        if self.router not in ("gru", "mlp", "linear"):  # nothing is learned, so nothing can be preferred
            if self.router_prior != "none":
                raise ValueError(f"router_prior: {self.router_prior}; none with router {self.router}")
            for name in ("balance_bias_rate", "module_dropout"):
                if getattr(self, name):
                    raise ValueError(f"{name}: {getattr(self, name)}; 0 with router {self.router}")
        if self.depth_target is not None:
            self._check_depth_target(layouts)

    def _check_depth_target(self, layouts: tuple[PoolLayout, ...]) -> None:
        target = self.depth_target
        if self.router not in ("gru", "mlp", "linear"):
            raise ValueError(f"depth_target: {target}; null with router {self.router}")
        if self.skip_rule != "first" and not any(layout.num_selected() == 1 for layout in layouts):
            raise ValueError(
                f"depth_target: {target}; null with top_k {self.top_k} and skip_rule {self.skip_rule}, where every "
                "token takes a module in every step"
            )
        leaves = [layout for layout in layouts if self.may_leave(layout)]
        steps = self.num_rounds * len(leaves)
        if (
            self.absorbing_skip
        ):  # who leaves in the first step that allows it takes no later one of either pool
            steps = 2 * self.num_rounds - (0 if layouts[0] in leaves else 1)
        least = self.graph_depth - 0.5 * self.num_stages * steps
        number = None if isinstance(target, bool) or not isinstance(target, int | float) else target
        if number is None or not least <= number <= self.graph_depth:
            raise ValueError(
                f"depth_target: {target!r}; a number from {least:g} to {self.graph_depth}, or null"
            )
