"""The host of a router kind, which chooses modules from a token's residual stream and the router's state.

A router serves all rounds of a stage for one pool. Every token has its own state, which starts at zero in each stage,
so tokens are independent here and decoding needs no cache for routers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils.generic import maybe_autocast

from mom.model.expert_choice import log_odds, top_share
from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.routers.hashing import hashed_ranking
from mom.model.routing import Routing, choose, contains_slot
from mom.model.skipping import run_probability, try_skip

NOISE_KINDS = ("gaussian", "gumbel")


class Router(nn.Module):
    """The router of a pool, with the layers of its :class:`mom.model.routers.RouterKind`.

    It applies reachability, temperature, prior, noise, and balance bias to the kind's scores and ranks the choices.

    Everything that decides a choice is computed in float32, because lower precision changes choices (Fedus et al. 2021,
    section 2.4): autocast is off inside, weights of a model in half precision are cast for the computation, and buffers
    stay in float32 when the model is cast.

    Args:
        config: the model's options.
        layout: the pool to choose from.
        salt: a number that differs between the pools of a model, for choices by hash.
    """

    VECTORS: ClassVar[frozenset[str]] = frozenset({"prior"})

    reachable: Tensor
    prior: nn.Parameter | None
    balance_bias: Tensor | None
    settled: Tensor | None
    noise_scale: Tensor
    temperature: Tensor | None

    def __init__(self, config: ModelOptions, layout: PoolLayout, salt: int) -> None:
        super().__init__()
        self.config, self.layout, self.salt = config, layout, salt
        self.kind: Any = layout.router
        self.set_top_k(layout.num_selected())
        normalize = config.normalize_weights
        is_raw = config.score_function == "identity" and self.kind.learns
        self.normalize = layout.capacity is None and not is_raw if normalize == "auto" else bool(normalize)
        learns = self.kind.learns
        self._rules: dict[str, Any] = {
            "num_modules": layout.num_modules,
            "normalize": self.normalize,
            "keep_gradient": normalize == "auto",
            "softmax": not learns or config.score_function == "softmax",
            "straight_through": learns and config.straight_through,
            "leave_when_skip_first": config.skip_rule == "first",
        }
        self.noise_kind: str | None = None
        self.register_buffer("noise_scale", torch.zeros((), dtype=torch.float32), persistent=False)
        self.register_buffer("temperature", None, persistent=False)
        reachable = torch.tensor(layout.reachable())  # (H, slots)
        self.register_buffer("reachable", reachable, persistent=False)
        self.all_reachable = all(map(all, layout.reachable()))
        learns_to_skip = layout.may_skip() and layout.capacity is None and learns
        self.explores = learns_to_skip and config.skip_exploration + config.skip_trials > 0
        table = layout.prior(config.router_prior, config.router_prior_strength)  # [H][slots]
        has_prior = learns and any(map(any, table))
        self.register_parameter("prior", nn.Parameter(self.initial_prior()) if has_prior else None)
        # For each module and SKIP, [N+1]; a buffer, since it is updated by a rule instead of a gradient.
        bias = torch.zeros(layout.num_modules + 1, dtype=torch.float32)
        self.register_buffer("balance_bias", bias if config.balance_bias_rate else None)
        # The module that a token ID keeps in a round, [H, V]; -1 where the router still chooses.
        can_settle = config.settle_steps is not None and learns and layout.has_choice()
        size = (layout.num_rounds, config.vocab_size)
        self.register_buffer("settled", torch.full(size, -1, dtype=torch.int32) if can_settle else None)
        for name, layer in self.kind.layers(config, layout).items():
            setattr(self, name, layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move the buffers with the module, but never cast them: a balance bias moves in steps of about 0.001."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def set_top_k(self, top_k: int) -> None:
        """Set K, at most the configured K."""
        assert 1 <= top_k <= self.layout.num_selected()
        self.top_k = top_k

    def set_noise(self, kind: str | None, scale: float = 0.0) -> None:
        """Set the noise that is added to the ranking in training: ``gaussian``, ``gumbel``, or ``None``."""
        assert kind in (None, *NOISE_KINDS)
        self.noise_kind = kind
        self.noise_scale.fill_(scale)  # a tensor, since `torch.compile` would treat a number as a constant

    def set_temperature(self, temperature: float | None) -> None:
        """Set the temperature; ``None`` restores the configured temperature."""
        if temperature is None:
            self.temperature = None
        elif self.temperature is None:
            self.temperature = torch.full_like(self.noise_scale, temperature)
        else:
            self.temperature.fill_(temperature)  # a tensor, as above

    def _noise(self, logits: Tensor) -> Tensor | None:
        """Draw the noise of a round, [B, T, slots]; ``None`` outside of training or without noise."""
        if self.noise_kind is None or not self.training:
            return None
        if self.noise_kind == "gaussian":
            return self.noise_scale * torch.randn_like(logits)
        tiny = torch.finfo(logits.dtype).tiny
        return -self.noise_scale * torch.empty_like(logits).exponential_().clamp_min(tiny).log()

    def initial_prior(self) -> Tensor:
        """Return the prior's initial value, [H, slots], in logits."""
        table = self.layout.prior(self.config.router_prior, self.config.router_prior_strength)
        return torch.tensor(table) * self.config.temperature

    def reset_tables(self, copy: Callable[[Tensor, Tensor], object]) -> None:
        """Initialize buffers, the prior, and SKIP's bias by ``copy(destination, source)``; layers come first."""
        self.kind.reset(self, copy)
        copy(self.reachable, torch.tensor(self.layout.reachable()))
        copy(self.noise_scale, torch.zeros(()))
        if self.prior is not None:
            copy(self.prior, self.initial_prior())
        if self.balance_bias is not None:
            copy(self.balance_bias, torch.zeros(self.layout.num_modules + 1))
        if self.settled is not None:
            copy(self.settled, torch.full_like(self.settled, -1, device="cpu"))
        bias = self.kind.output_bias(self)
        # With a capacity, SKIP starts at even odds, near which the causal rule decides.
        if bias is not None and self.layout.skip and self.layout.capacity is None:
            start = bias.detach().clone()  # (slots,)
            start[self.layout.num_modules :] = self.config.skip_bias * self.config.temperature
            copy(bias, start)

    def settle(self, counts: Tensor) -> None:
        """Let each token ID keep the module that it took most often (StableMoE, Dai et al. 2022, arXiv 2204.08396).

        The router still decides between this module and SKIP, and chooses for token IDs without a count.

        Args:
            counts: how often each token ID took each module in a round, [H, V, N].
        """
        assert self.settled is not None
        self.settled.copy_(torch.where(counts.sum(dim=-1) > 0, counts.argmax(dim=-1), -1))

    def slot_bias(self) -> Tensor | None:
        """Return the balance bias of each slot, [slots], float32; all slots that mean SKIP share a bias."""
        if self.balance_bias is None:
            return None
        bias, modules = self.balance_bias, self.layout.num_modules
        return torch.cat([bias[:modules], bias[modules:].expand(self.layout.num_skip_slots)])

    def can_spare(self, modules: Collection[int]) -> bool:
        """Return whether every round has enough choices without these modules."""
        fewest = int(self._reachable_without(modules).sum(dim=-1).min())
        return fewest >= self._top_k_without(modules) and self.kind.can_spare(modules)

    @contextmanager
    def without(self, modules: Collection[int]) -> Iterator[None]:
        """Remove modules from the pool within the context (module ablation).

        No round can reach them, so the softmax runs only over the others: the model equals one that is built without
        their router outputs and weights.

        Raises:
            ValueError: a round would have fewer than K choices.
        """
        if not self.can_spare(modules):
            raise ValueError(
                f"cannot remove modules {sorted(modules)} of the {self.layout.name} pool: every round needs "
                f"{self._top_k_without(modules)} choices"
            )
        before, top_k = (self.reachable, self.all_reachable), self.top_k
        self.set_top_k(self._top_k_without(modules))
        self.reachable, self.all_reachable = self._reachable_without(modules), False
        try:
            yield
        finally:
            self.reachable, self.all_reachable = before
            self.set_top_k(top_k)

    def _reachable_without(self, modules: Collection[int]) -> Tensor:
        reachable = self.reachable.clone()  # (H, slots)
        reachable[:, list(modules)] = False
        return reachable

    def _top_k_without(self, modules: Collection[int]) -> int:
        """Return K without these modules, which decreases with ``top_k: all``."""
        return self.top_k - len(set(modules)) if self.layout.top_k == "all" else self.top_k

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        round_index: int,
        token_ids: Tensor | None = None,
        forced: Tensor | None = None,
        candidates: Tensor | None = None,
        explored: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> tuple[Routing, Tensor | None]:
        """Choose for every token (paper, section 3.2).

        Args:
            x: un-normalized residual stream, [B, T, D].
            state: the router's state after the previous round, [B, T, state]; ``None`` at first, or without a state.
            round_index: the round within the stage.
            token_ids: [B, T], for kinds that need them.
            forced: forced choices, int64 [B, T, K]; index N is SKIP and -1 the router's own choice.
            candidates: tokens that training may try or modules may take, boolean [B, T]; padding and tokens that exited
                are not among them; ``None`` means all.
            explored: sequences in which no token may skip (``skip_exploration``), boolean [B]; ``None`` also means that
                no step is a trial (``skip_trials``).
            embedded: token embeddings without positions, [B, T, D], for kinds that start from them in round 0.

        Returns:
            The record and the new state.
        """
        cast = {
            name: weight.float()
            for name, weight in self.named_parameters()
            if weight.is_floating_point() and weight.dtype != torch.float32
        }
        if cast:
            return functional_call(
                self, cast, (x, state, round_index, token_ids, forced, candidates, explored, embedded)
            )
        with maybe_autocast(x.device.type, enabled=False):
            if round_index == 0 and embedded is not None:
                state = self.kind.start(self, embedded.float())
            return self._decide(x.float(), state, round_index, token_ids, forced, candidates, explored)

    def _decide(
        self,
        x: Tensor,
        state: Tensor | None,
        round_index: int,
        token_ids: Tensor | None,
        forced: Tensor | None,
        candidates: Tensor | None,
        explored: Tensor | None,
    ) -> tuple[Routing, Tensor | None]:
        """Choose as :meth:`forward` does, with everything in float32."""
        learns = self.kind.learns
        outputs, state, *ranking = self.kind.score(self, x, state, round_index, token_ids)
        logits = outputs.float()  # (B, T, slots)
        if self.prior is not None:
            logits = logits + self.prior[round_index]
        if learns and self.config.router_prior == "hashed" and self.layout.has_weak_prior(round_index):
            logits = logits + self._hashed_prior(round_index, token_ids)
        if learns and (self.temperature is not None or self.config.temperature != 1):
            logits = logits / (self.config.temperature if self.temperature is None else self.temperature)
        reachable = self.kind.open_slots(self, round_index)
        if self.settled is not None:
            reachable = self._only_settled(reachable, self.settled[round_index], token_ids, forced)
        trials = None
        if self.explores and explored is not None and forced is None:
            explored = explored[:, None, None]  # (B, 1, 1)
            trials = (torch.rand_like(logits[..., :1]) < self.config.skip_trials) & ~explored  # (B, T, 1)
            if candidates is not None:
                trials = trials & candidates[..., None]  # (B, T, 1)
            run = run_probability(logits, reachable, self.layout.num_modules)  # (B, T, 1)
            reachable = self._without_skip(explored | trials, reachable)
        if forced is not None and not learns:
            reachable = self._open_forced(reachable, forced)
        noise = self._noise(logits) if learns else None
        routing = choose(
            logits,
            top_k=self.top_k,
            reachable=reachable,
            ranking=ranking[0] if ranking else None,
            noise=noise,
            bias=self.slot_bias(),
            taken=self._taken(logits if noise is None else logits + noise, candidates),
            forced=forced,
            **self._rules,
        )
        if trials is not None:
            scores, selected, weights, logits = routing
            # Not `_replace`, which PyTorch 2.11 cannot compile.
            weights = weights * try_skip(run, trials, self.config.skip_price)
            routing = Routing(scores, selected, weights, logits)
        return routing, state

    def _only_settled(
        self, slots: Tensor | None, settled: Tensor, token_ids: Tensor | None, forced: Tensor | None
    ) -> Tensor:
        """Close all modules but the one that a token ID keeps in this round, unless it was removed, [B, T, slots]."""
        if token_ids is None:
            raise ValueError(
                "router.settle_steps requires input_ids: choices settle per token id, got inputs_embeds"
            )
        known = token_ids < len(settled)  # false for IDs that were added to the vocabulary later
        kept = torch.where(known, settled[token_ids * known], -1)  # (B, T)
        if forced is not None:
            kept = torch.where(forced[..., 0] >= 0, -1, kept)
        slot = torch.arange(self.layout.num_slots, device=kept.device)  # (slots,)
        is_kept, is_skip = slot == kept[..., None], slot >= self.layout.num_modules
        if slots is None:
            return is_kept | is_skip | (kept < 0)[..., None]
        return slots & (is_kept | is_skip | ~(is_kept & slots).any(dim=-1, keepdim=True))

    def _hashed_prior(self, round_index: int, token_ids: Tensor | None) -> Tensor:
        """Return the bias for the module that ``router=random`` would take without SKIP, [B, T, slots]."""
        if token_ids is None:
            raise ValueError(
                "router.router_prior=hashed requires input_ids: it depends on token ids, got inputs_embeds"
            )
        slots = torch.arange(self.layout.num_slots, device=token_ids.device)
        modules = slots[: self.layout.num_modules]
        ranking = hashed_ranking(token_ids, round_index, modules, self.salt)  # (B, T, N)
        ranking = ranking.masked_fill(~self.reachable[round_index, : len(modules)], -1.0)
        preferred = slots == ranking.argmax(dim=-1, keepdim=True)  # (B, T, slots)
        return preferred * (self.config.router_prior_strength * self.config.temperature)

    def _taken(self, logits: Tensor, candidates: Tensor | None) -> Tensor | None:
        """Return the modules that take each token, boolean [B, T, N]; ``None`` without a capacity."""
        if self.layout.capacity is None:
            return None
        odds = log_odds(logits.detach(), self.layout.num_modules)
        return top_share(odds, self.layout.capacity, candidates) if self.training else odds > 0

    def _without_skip(self, tokens: Tensor, slots: Tensor | None) -> Tensor:
        """Close SKIP for the given tokens, boolean [B, T, 1], in [slots] or [B, T, slots] → [B, T, slots].

        It stays open as the only choice.
        """
        slot = torch.arange(self.layout.num_slots, device=tokens.device)  # (slots,)
        closed = tokens & (slot >= self.layout.num_modules)
        if slots is None:
            return ~closed
        return slots & ~(closed & slots[..., : self.layout.num_modules].any(dim=-1, keepdim=True))

    def _open_forced(self, slots: Tensor | None, forced: Tensor) -> Tensor | None:
        """Make the forced modules of a token its only slots if it would choose among others, [B, T, slots].

        This is for kinds that do not learn: the forced modules then share the weight equally. A token whose only
        forced choice is SKIP keeps its slots if it has any, and SKIP gets what weight it has there.
        """
        if slots is None:
            return None
        modules, all_slots = self.layout.num_modules, self.layout.num_slots
        chosen = contains_slot(forced, all_slots)  # (B, T, slots)
        no_module = ~chosen[..., :modules].any(dim=-1, keepdim=True)  # (B, T, 1)
        alone = torch.cat(
            [chosen[..., :modules], no_module.expand(*chosen.shape[:2], all_slots - modules)], -1
        )
        closed = (chosen[..., :modules] & ~slots[:modules]).any(dim=-1, keepdim=True)  # (B, T, 1)
        return torch.where(closed | ~slots.any(), alone, slots)
