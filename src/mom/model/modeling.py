"""The Mixture-of-Modules transformer and its language model, as Hugging Face models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mom.model.assembly import Stage
from mom.model.attention import AttentionContext
from mom.model.blocks import Block, ResidualProjection
from mom.model.cache import prepare
from mom.model.choices import Choices, split_choices
from mom.model.components import build_norm
from mom.model.configuration import MoMConfig
from mom.model.losses import head_cross_entropy, routing_losses
from mom.model.pools.pool import Pool
from mom.model.routers.router import Router
from mom.model.routing import RoundRouting


@dataclass
class MoMModelOutput(ModelOutput):
    """Output of the model without a head.

    Attributes:
        last_hidden_state: output of the final norm, [B, T, D].
        past_key_values: the cache, one layer per executed attention.
        hidden_states: the residual stream after the embeddings and after every block and round, [B, T, D] each.
        routing: one :class:`RoundRouting` per round, stages in order; empty for a plain transformer.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routing: tuple[RoundRouting, ...] | None = None


@dataclass
class MoMCausalLMOutput(ModelOutput):
    """Output of the language model.

    Attributes:
        loss: ``lm_loss`` plus every other loss below times its coefficient, such as ``balance_coefficient``. A term
            with coefficient 0 is left out of the sum, and reported without a gradient.
        lm_loss: mean cross-entropy of the next token, in nats.
        balance_loss: summed over pools, before its coefficient.
        z_loss: router z-loss, before its coefficient.
        depth_loss: penalty on the distance to ``depth_target``, before its coefficient; ``None`` without one.
        capacity_loss: cross-entropy of predicting which tokens modules take, before its coefficient; ``None`` without a
            ``capacity``.
        logits: [B, T, V].
        others: see :class:`MoMModelOutput`.
    """

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    z_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    capacity_loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routing: tuple[RoundRouting, ...] | None = None


class MoMPreTrainedModel(PreTrainedModel):
    """Base class: initialization and transformers' class attributes."""

    config_class = MoMConfig
    config: MoMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "Stage"]  # noqa: RUF012 (transformers reads a list)
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"balance_bias"}  # noqa: RUF012 (as above)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as GPT-2 does; projections into the residual stream are scaled down with graph depth."""
        std = self.config.initializer_range
        if isinstance(module, Pool):
            module.reset_parameters(init.normal_, init.constant_)
        elif isinstance(module, Router):
            module.reset_tables(init.copy_)
        elif isinstance(module, nn.RNNCellBase):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("bias"):
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, mean=0.0, std=std)
        elif isinstance(module, nn.Linear):
            depth = 2 * self.config.graph_depth if isinstance(module, ResidualProjection) else 1
            init.normal_(module.weight, mean=0.0, std=std / math.sqrt(depth))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)


class MoMEmbedding(nn.Module):
    """The token embedding and, unless positions are rotary, a learned position embedding."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.d_model)
        learned = not config.components.rotary
        self.position = nn.Embedding(config.max_positions, config.d_model) if learned else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embedded: Tensor, position_ids: Tensor) -> Tensor:
        """Add positions [B, T] to token embeddings, [B, T, D] → [B, T, D]."""
        return self.dropout(embedded if self.position is None else embedded + self.position(position_ids))


class MoMModel(MoMPreTrainedModel):
    """The model without a head: embeddings, bottom blocks, stages with their anchors, top blocks, final norm."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__(config)
        self.embedding = MoMEmbedding(config)
        self.bottom = nn.ModuleList(Block(config) for _ in range(config.num_bottom_blocks))
        self.stages = nn.ModuleList(Stage(config, index) for index in range(config.num_stages))
        self.top = nn.ModuleList(Block(config) for _ in range(config.num_top_blocks))
        self._first_top_layer = config.num_attentions - config.num_top_blocks
        self.norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding.token

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embedding.token = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
        **kwargs: Any,
    ) -> MoMModelOutput:
        """Compute hidden states.

        Args:
            input_ids: [B, T].
            attention_mask: 1 for real tokens, 0 for padding, [B, T] (with a cache, [B, T_past + T]).
            position_ids: [B, T]; by default, only real tokens count, so padding on either side has no effect.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: token embeddings instead of IDs, [B, T, D].
            use_cache: return a cache.
            output_hidden_states: return the residual stream after every block and round.
            output_routing: return the routing records.
            choices: modules to run instead of the routers' choices, by pool, int64 [B, T, R, K]
                (:mod:`mom.model.choices`).

        Raises:
            ValueError: not exactly one of IDs and embeddings is given, more tokens than ``max_positions``, or choices
                that do not fit the model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        embedded = self.embedding.token(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        if isinstance(past_key_values, DynamicCache):
            prepare(past_key_values, self.config.num_cache_layers)
        position_ids = self._positions(embedded, attention_mask, position_ids, past_key_values)
        x = self.embedding(embedded, position_ids)
        context = AttentionContext.build(self.config, embedded, attention_mask, past_key_values, position_ids)
        run = _checkpointed if self.gradient_checkpointing and self.training else _run
        if past_key_values is not None and not torch.compiler.is_compiling():
            run = _eager
        hidden: list[Tensor] = []
        keep = hidden.append if output_hidden_states else _discard
        routing: list[RoundRouting] = []
        keep(x)
        for layer, block in enumerate(self.bottom):
            x = run(block, x, context, layer)
            keep(x)
        forced = split_choices(choices, list(self.stages), *x.shape[:2])
        for stage, stage_choices in zip(self.stages, forced, strict=True):
            x, rounds = stage(x, context, input_ids, run, keep, stage_choices)
            routing += rounds
        for layer, block in enumerate(self.top, start=self._first_top_layer):
            x = run(block, x, context, layer)
            keep(x)
        return MoMModelOutput(
            last_hidden_state=self.norm(x),
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            routing=tuple(routing) if output_routing else None,
        )

    def compile_layers(self, **options: Any) -> None:
        """Compile every block and every stage's round in place; names in checkpoints stay the same.

        Each compiles to one graph (``fullgraph=True``) and does not recompile for other tokens of the same shape.
        ``options`` are those of `torch.compile`, such as ``mode`` or ``backend``.

        Compiled backward passes then run without autocast, as eager ones do; this is a setting of the whole process.
        """
        # By default autocast's matmuls reach the backward pass, also of code that turns autocast off, as routers do.
        functorch_config.backward_pass_autocast = "off"
        for module in self.modules():
            if isinstance(module, Block):
                module.compile(fullgraph=True, **options)
            elif isinstance(module, Stage):
                module.compile_rounds(fullgraph=True, **options)

    def _positions(
        self,
        embedded: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Return the positions of the T tokens, [B, T] or [1, T]."""
        length = embedded.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        if attention_mask is None and position_ids is None and past + length > self.config.max_positions:
            raise ValueError(
                "the sequence must have at most "
                f"max_positions ({self.config.max_positions}) tokens, got {past + length}"
            )
        if position_ids is not None:
            return position_ids
        if attention_mask is not None and attention_mask.dim() == 2:
            counted = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
            return counted[:, -length:]
        return torch.arange(past, past + length, device=embedded.device)[None]


def _discard(x: Tensor) -> None:
    """Discard the residual stream, so that its memory is freed."""


def _run(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _eager(function: Callable, *arguments: Any) -> Any:
    """Run without :meth:`MoMModel.compile_layers`: with a cache, every length would be compiled again."""
    with torch.compiler.set_stance("force_eager"):
        return function(*arguments)


def _checkpointed(function: Callable, *arguments: Any) -> Any:
    """Store only the inputs and recompute in the backward pass; the routing returned first is kept."""
    return checkpoint(function, *arguments, use_reentrant=False)


class MoMGenerationConfig(GenerationConfig):
    """Generation settings that take only the special tokens from the model's configuration.

    Its ``temperature`` and ``top_k`` belong to the router, not to sampling.
    """

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Return settings with the special tokens of a configuration or its dictionary."""
        config = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(**{name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")})


class MoMForCausalLM(MoMPreTrainedModel, GenerationMixin):
    """The language model, with a head that is tied to the token embedding by default."""

    generation_config_class = MoMGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embedding.token.weight"}  # noqa: RUF012 (transformers reads a dict)

    def __init__(self, config: MoMConfig) -> None:
        super().__init__(config)
        self.model = MoMModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
        output_logits: bool = True,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoMCausalLMOutput:
        """Predict the next token; the arguments of :meth:`MoMModel.forward` and:

        Args:
            labels: target tokens, [B, T], shifted here, so pass ``labels=input_ids`` to train; -100 is ignored. The
                loss is computed without materializing all logits at once.
            output_logits: return logits.
            logits_to_keep: number of last positions that get logits (0: all), or the positions themselves.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_routing=True,
            choices=choices,
        )
        hidden = output.last_hidden_state  # (B, T, D)
        logits = None
        if output_logits:
            # A slice from -0 keeps all positions, as intended for 0.
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])  # (B, T kept, V)
        losses: dict[str, Any] = {}
        if labels is not None:
            losses["lm_loss"] = self._next_token_loss(hidden, labels)
            losses |= routing_losses(self.config, output.routing, attention_mask, losses["lm_loss"])
        return MoMCausalLMOutput(
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            routing=output.routing if output_routing else None,
            **losses,
        )

    def _next_token_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next tokens, in nats; a scalar."""
        before = hidden[:, :-1].flatten(0, 1)  # (B · (T-1), D)
        return head_cross_entropy(self.lm_head, before, labels[:, 1:].flatten())
