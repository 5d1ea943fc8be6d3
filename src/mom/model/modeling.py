"""The Mixture-of-Modules transformer and its language model, as Hugging Face models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any, Unpack, cast

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from mom.model.assembly import Stage
from mom.model.attention import AttentionContext, EagerAttention, real_tokens
from mom.model.blocks import Block, ResidualProjection
from mom.model.cache import prepare
from mom.model.choices import Choices, split_choices
from mom.model.components import build_norm
from mom.model.configuration import MoMConfig
from mom.model.cross_entropy import head_cross_entropy
from mom.model.losses import routing_losses, window_share
from mom.model.outputs import MoMCausalLMOutput, MoMModelOutput
from mom.model.pools.pool import Pool
from mom.model.positions import Packing, check_packing, check_positions, token_positions
from mom.model.routers.router import Router
from mom.model.routing import RoundRouting
from mom.model.rules import check_options
from mom.model.steps import Step, run_eagerly


class MoMPreTrainedModel(PreTrainedModel):
    """Base class: initialization and transformers' class attributes."""

    config_class = MoMConfig
    config: MoMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "Stage"]  # noqa: RUF012 (transformers reads a list)
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _can_compile_fullgraph = True
    accepts_loss_kwargs = True  # `Trainer` passes num_items_in_batch

    def __init__(self, config: MoMConfig) -> None:
        check_options(config)  # its fields may have been set since it was made
        if config.balance_bias_rate:
            self._keep_in_fp32_modules_strict = {"balance_bias"}
        super().__init__(config)

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
        # Read here, because `torch.compile` cannot read how options are declared.
        self._first_top_layer = config.num_attentions - config.num_top_blocks
        self._cache_layers = config.num_cache_layers, config.num_attentions
        self.norm = build_norm(config)
        self.steps = nn.ModuleList(Step() for _ in range(config.graph_depth))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding.token

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embedding.token = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
        **packed: Unpack[Packing],
    ) -> MoMModelOutput:
        """Compute hidden states.

        Args:
            input_ids: [B, T].
            attention_mask: 1 for real tokens, 0 for padding, [B, T] (with a cache, [B, T_past + T]); or what each query
                may attend to, [B, 1, T, T_key], boolean or numbers to add to the scores.
            position_ids: [B, T]; by default, only real tokens count, so padding on either side has no effect. Without a
                mask or earlier tokens, a row may hold several sequences: where positions start anew, another begins.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: token embeddings instead of IDs, [B, T, D].
            use_cache: return a cache; ``None``: as the configuration says, but not in training.
            output_hidden_states: return the residual stream after every block and round; ``None``: as the configuration
                says.
            output_attentions: return the attention weights; ``None``: as the configuration says.
            output_routing: return the routing records.
            choices: modules to run instead of the routers' choices, by pool, int64 [B, T, R, K]
                (:mod:`mom.model.choices`).
            packed: where packed sequences start; ``position_ids`` must tell it too.

        Raises:
            ValueError: not exactly one of IDs and embeddings is given, more tokens than ``max_positions``, a cache with
                activation checkpointing, several sequences in a row for a pool that streams, or choices that do not fit
                the model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        check_packing(packed, position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        embedded = self.embedding.token(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        past = past_key_values
        if use_cache and past is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            if self.training and self.is_activation_checkpointing:
                raise ValueError("use_cache must be false in training with activation checkpointing")
            prepare(past_key_values, *self._cache_layers)
        positions = token_positions(self.config, embedded, attention_mask, position_ids, past_key_values)
        attend_with: Callable[..., Tensor] = F.scaled_dot_product_attention
        if output_attentions or self.config._attn_implementation == "eager":
            attend_with = EagerAttention(keeps_weights=output_attentions)
        context = AttentionContext.build(self.config, embedded, attention_mask, past, positions, position_ids)
        context = replace(context, cache=past_key_values, attend_with=attend_with)
        x = self.embedding(embedded, positions)
        steps = cast(Iterator[Step], iter(self.steps))

        def run(function: Callable, *arguments: Any) -> Any:
            step = next(steps)
            if past_key_values is not None and not torch.compiler.is_compiling():
                return run_eagerly(step.run, function, *arguments)
            return step.run(function, *arguments)

        hidden: list[Tensor] = []
        keep = hidden.append if output_hidden_states else _discard
        routing: list[RoundRouting] = []
        keep(x)
        for layer, block in enumerate(self.bottom):
            x = run(block, x, context, layer)
            keep(x)
        forced = split_choices(choices, list(self.stages), *x.shape[:2])
        for stage, stage_choices in zip(self.stages, forced, strict=True):
            x, rounds = stage(x, context, input_ids, embedded, run, keep, stage_choices)
            routing += rounds
        for layer, block in enumerate(self.top, start=self._first_top_layer):
            x = run(block, x, context, layer)
            keep(x)
        x = self.norm(x)
        attentions = attend_with.weights if isinstance(attend_with, EagerAttention) else None
        return MoMModelOutput(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden[:-1], x) if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
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


def _discard(x: Tensor) -> None:
    """Discard the residual stream, so that its memory is freed."""


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

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # `generate` reads the signature
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Prepare as transformers does, and check the positions, which a compiled forward pass cannot."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        cache, positions = inputs.get("past_key_values"), inputs.get("position_ids")
        if cache is not None and cache.is_compileable and positions is not None:
            check_positions(self.config, positions)
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
        output_logits: bool = True,
        logits_to_keep: int | Tensor = 0,
        **packed: Unpack[Packing],
    ) -> MoMCausalLMOutput:
        """Predict the next token; the arguments of :meth:`MoMModel.forward` and:

        Args:
            labels: target tokens, [B, T], shifted here, so pass ``labels=input_ids`` to train; -100 is ignored. The
                loss is computed without materializing all logits at once.
            shift_labels: target tokens that are already shifted, [B, T], instead of ``labels``.
            num_items_in_batch: targets in all batches whose gradients are summed; the sum over targets is divided by
                it. ``None``: the targets of this batch. `Trainer` passes it.
            use_cache: as for :meth:`MoMModel.forward`, but ``None`` with labels is false.
            output_logits: return logits.
            logits_to_keep: number of last positions that get logits (0: all), or the positions themselves.
        """
        has_targets = labels is not None or shift_labels is not None
        if use_cache is None and has_targets:
            use_cache = False
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_routing=True,
            choices=choices,
            return_dict=True,
            **packed,
        )
        hidden = output.last_hidden_state  # (B, T, D)
        logits = None
        if output_logits:
            # A slice from -0 keeps all positions, as intended for 0.
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])  # (B, T kept, V)
        losses: dict[str, Any] = {}
        if has_targets:
            before, targets = hidden, shift_labels
            if targets is None:
                assert labels is not None
                before, targets = hidden[:, :-1], labels[:, 1:]
            targets = targets.to(hidden.device).flatten()  # (M,)
            losses["lm_loss"] = head_cross_entropy(
                self.lm_head, before.flatten(0, 1), targets, num_items=num_items_in_batch
            )
            share = window_share((targets != -100).sum(), num_items_in_batch)
            mask = real_tokens(attention_mask, hidden)
            losses |= routing_losses(self.config, output.routing, mask, losses["lm_loss"], share)
        return MoMCausalLMOutput(
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            routing=output.routing if output_routing else None,
            **losses,
        )


# With label smoothing, `Trainer` computes the loss itself, and shifts the labels of the classes in this table only.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(MoMConfig.model_type, MoMForCausalLM.__name__)
