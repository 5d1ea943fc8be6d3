"""The routers: each round, from a token's residual stream (and its own state) to a choice of modules.

One router serves all rounds of a stage for one pool. Its state belongs to a token and starts at zero in each
stage, so nothing of it passes between tokens and cached decoding needs no more than keys and values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from mom.model.configuration import MoMConfig
from mom.model.routing import Routing, choose
from mom.model.schedules import PoolLayout

NOISE_KINDS = ("gaussian", "gumbel")


class Router(nn.Module, ABC):
    """What all routers share: reachability, temperature, the prior, and the choice itself.

    Args:
        config: the model's configuration.
        layout: the pool this router chooses from.
        salt: a number that differs between the pools of a model (the random router's choices depend on it).
    """

    VECTORS: ClassVar[frozenset[str]] = frozenset({"prior"})

    reachable: Tensor
    prior: nn.Parameter | None
    balance_bias: Tensor | None
    noise_scale: Tensor

    def __init__(self, config: MoMConfig, layout: PoolLayout, salt: int) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.salt = salt
        self.set_top_k(layout.num_selected())
        self.noise_kind: str | None = None
        self.register_buffer("noise_scale", torch.zeros(()), persistent=False)
        self.register_buffer("reachable", torch.tensor(layout.reachable()), persistent=False)
        self.all_reachable = all(map(all, layout.reachable()))
        if config.router_prior == "none":
            self.register_parameter("prior", None)
        else:
            self.prior = nn.Parameter(self._initial_prior())
        # Of each module and SKIP, [N+1]; no parameter, since a rule moves it and not a gradient.
        bias = torch.zeros(layout.num_modules + 1) if config.balance_bias_rate else None
        self.register_buffer("balance_bias", bias)

    def set_top_k(self, top_k: int) -> None:
        """Choose K places from now on, at most the configuration's; ``normalize_weights: auto`` goes by it."""
        assert 1 <= top_k <= self.layout.num_selected()
        self.top_k = top_k
        normalize = self.config.normalize_weights
        self.normalize = top_k > 1 if normalize == "auto" else bool(normalize)

    def set_noise(self, kind: str | None, scale: float = 0.0) -> None:
        """From now on rank noisy logits in training.

        Args:
            kind: ``gaussian`` or ``gumbel``; ``None`` for no noise.
            scale: what the noise is multiplied by.
        """
        assert kind in (None, *NOISE_KINDS)
        self.noise_kind = kind
        self.noise_scale.fill_(scale)  # a tensor, since a number would be compiled in

    def _noise(self, logits: Tensor) -> Tensor | None:
        """Noise of one round, [B, T, slots]; ``None`` outside of training or where there is none."""
        if self.noise_kind is None or not self.training:
            return None
        if self.noise_kind == "gaussian":
            return self.noise_scale * torch.randn_like(logits)
        tiny = torch.finfo(logits.dtype).tiny
        return -self.noise_scale * torch.empty_like(logits).exponential_().clamp_min(tiny).log()

    def draw_dropped(self, x: Tensor) -> Tensor | None:
        """What decides which modules are dropped in a stage's rounds: uniform, [B, 1 or T, N].

        Args:
            x: residual stream, [B, T, D].

        Returns:
            ``None`` outside of training or where none are.
        """
        if not self.training or not self.config.module_dropout:
            return None
        length = x.shape[1] if self.config.module_dropout_per == "token" else 1
        return torch.rand(x.shape[0], length, self.layout.num_modules, device=x.device)

    def open_slots(self, round_index: int, draws: Tensor | None) -> Tensor | None:
        """Slots a round may choose: [slots], or [B, 1 or T, slots] if modules are dropped; ``None``: all.

        Of the modules that the round can reach the one with the highest draw always stays.

        Args:
            round_index: the round within the stage.
            draws: this forward's :meth:`draw_dropped`.
        """
        reachable = self.reachable[round_index]  # (slots,)
        if draws is None:
            return None if self.all_reachable else reachable
        modules, skip = reachable.split([self.layout.num_modules, self.layout.num_skip_slots])
        highest = draws.masked_fill(~modules, -1.0).amax(dim=-1, keepdim=True)
        kept = modules & ((draws >= self.config.module_dropout) | (draws == highest))  # (B, 1 or T, N)
        return torch.cat([kept, skip.expand(*kept.shape[:-1], -1)], dim=-1)

    def _initial_prior(self) -> Tensor:
        """[H, slots], in logits: the preference in units of the temperature times the temperature."""
        table = self.layout.prior(self.config.router_prior, self.config.router_prior_strength)
        return torch.tensor(table) * self.config.temperature

    def reset_tables(self, copy: Callable[[Tensor, Tensor], object]) -> None:
        """Write the tables again that no checkpoint holds or that start from more than noise.

        Args:
            copy: ``copy(destination, source)``, the initialiser's way to overwrite a tensor.
        """
        copy(self.reachable, torch.tensor(self.layout.reachable()))
        copy(self.noise_scale, torch.zeros(()))
        if self.prior is not None:
            copy(self.prior, self._initial_prior())
        if self.balance_bias is not None:
            copy(self.balance_bias, torch.zeros(self.layout.num_modules + 1))

    def slot_bias(self) -> Tensor | None:
        """``balance_bias`` of each slot, [slots], float32: all slots that mean SKIP share one."""
        if self.balance_bias is None:
            return None
        bias, modules = self.balance_bias.float(), self.layout.num_modules
        return torch.cat([bias[:modules], bias[modules:].expand(self.layout.num_skip_slots)])

    def can_spare(self, modules: Collection[int]) -> bool:
        """Whether every round could still fill its K places without these modules, which :meth:`without` needs."""
        kept = self.reachable.clone()
        kept[:, list(modules)] = False
        return int(kept.sum(dim=-1).min()) >= self._places_without(modules)

    @contextmanager
    def without(self, modules: Collection[int]) -> Iterator[None]:
        """Within the context, choose as a router whose pool never had these modules.

        Their slots are out of reach in every round, so that the softmax runs over the others alone: the model
        equals one that is built without their columns and their modules. For measuring what modules are worth.

        Args:
            modules: their indices in the pool.

        Raises:
            ValueError: a round would be left with fewer choices than places.
        """
        if not self.can_spare(modules):
            raise ValueError(
                f"modules: {sorted(modules)} of the {self.layout.name} pool; few enough to leave every round "
                f"{self._places_without(modules)} choices"
            )
        before, top_k = (self.reachable, self.all_reachable), self.top_k
        self.set_top_k(self._places_without(modules))
        self.reachable = self.reachable.clone()
        self.reachable[:, list(modules)] = False
        self.all_reachable = False
        try:
            yield
        finally:
            self.reachable, self.all_reachable = before
            self.set_top_k(top_k)

    def _places_without(self, modules: Collection[int]) -> int:
        """K without these modules; ``top_k: all`` has a place for each slot that is there."""
        return self.top_k - len(set(modules)) if self.layout.top_k == "all" else self.top_k

    @abstractmethod
    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Router outputs of one round.

        Args:
            x: un-normalised residual stream, [B, T, D].
            state: this router's state after the round before, [B, T, router_dim]; ``None`` at first.
            round_index: the round within the stage.
            token_ids: [B, T], for the router that needs them.

        Returns:
            Outputs [B, T, slots], the new state, and what to rank by if not the scores.
        """

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        round_index: int,
        token_ids: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> tuple[Routing, Tensor | None]:
        """Choose for every token; see :meth:`score` for the arguments, and :meth:`draw_dropped` for ``draws``."""
        outputs, state, ranking = self.score(x, state, round_index, token_ids)
        outputs = outputs.float()
        if self.prior is not None:
            outputs = outputs + self.prior[round_index]
        logits = outputs / self.config.temperature
        routing = choose(
            logits,
            num_modules=self.layout.num_modules,
            top_k=self.top_k,
            normalize=self.normalize,
            softmax=self.config.score_function == "softmax",
            straight_through=self.config.straight_through,
            leave_when_skip_first=self.config.skip_rule == "first",
            reachable=self.open_slots(round_index, draws),
            ranking=ranking,
            noise=self._noise(logits),
            bias=self.slot_bias(),
        )
        return routing, state


class GRURouter(Router):
    """The paper's router: a GRU over rounds, read out linearly (paper, section 3.2; DESIGN §1)."""

    def __init__(self, config: MoMConfig, layout: PoolLayout, salt: int) -> None:
        super().__init__(config, layout, salt)
        self.cell = nn.GRUCell(config.d_model, config.router_width)
        self.output = nn.Linear(config.router_width, layout.num_slots)

    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        before = None if state is None else state.flatten(0, 1)
        after = self.cell(x.flatten(0, 1), before).view(*x.shape[:2], -1)  # (B, T, router_dim)
        return self.output(after), after, None


class MLPRouter(Router):
    """Linear, ReLU, Linear; no state."""

    def __init__(self, config: MoMConfig, layout: PoolLayout, salt: int) -> None:
        super().__init__(config, layout, salt)
        self.input = nn.Linear(config.d_model, config.router_width)
        self.output = nn.Linear(config.router_width, layout.num_slots)

    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.output(self.input(x).relu()), None, None


class LinearRouter(Router):
    """One linear layer; no state."""

    def __init__(self, config: MoMConfig, layout: PoolLayout, salt: int) -> None:
        super().__init__(config, layout, salt)
        self.output = nn.Linear(config.d_model, layout.num_slots)

    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.output(x), None, None


class FixedRouter(Router):
    """A router without parameters: its own rule fixes scores and ranking, and every slot it ranks is allowed."""

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        round_index: int,
        token_ids: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> tuple[Routing, Tensor | None]:
        """As :meth:`Router.forward`; temperature, prior, noise, score function and sign do not apply."""
        logits, state, ranking = self.score(x, state, round_index, token_ids)
        routing = choose(
            logits,
            num_modules=self.layout.num_modules,
            top_k=self.top_k,
            normalize=self.normalize,
            leave_when_skip_first=self.config.skip_rule == "first",
            ranking=ranking,
        )
        return routing, state


class SequentialRouter(FixedRouter):
    """Round h takes module h mod N with weight 1; the other K-1 places hold SKIP with weight 0."""

    def can_spare(self, modules: Collection[int]) -> bool:
        """Only none: each round takes the one module that its number says."""
        return not modules

    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        taken = round_index % self.layout.num_modules
        logits = x.new_full((*x.shape[:2], self.layout.num_slots), float("-inf"), dtype=torch.float32)
        logits[..., taken] = 0.0
        return logits, None, None

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        round_index: int,
        token_ids: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> tuple[Routing, Tensor | None]:
        """As :meth:`Router.forward`; the places after the first are SKIP by definition, not by rank."""
        routing, state = super().forward(x, state, round_index, token_ids, draws)
        selected = torch.full_like(routing.selected, self.layout.num_modules)
        selected[..., 0] = round_index % self.layout.num_modules
        return routing._replace(selected=selected), state


class RandomRouter(FixedRouter):
    """A fixed random choice per (token id, round), uniform over the reachable slots; a baseline.

    The choice is a hash of token id, round, slot and pool, so it is the same in every batch, on every device
    and in every process, and needs no table.
    """

    def score(
        self, x: Tensor, state: Tensor | None, round_index: int, token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if token_ids is None:
            raise ValueError(
                "inputs_embeds: given; input_ids with router random, whose choice is per token id"
            )
        slots = torch.arange(self.layout.num_slots, device=x.device)
        key = (token_ids[..., None] * 1_000_003 + round_index) * 8_191 + slots  # (B, T, slots), int64
        ranking = _hash_to_unit(key * 131 + self.salt)
        logits = torch.zeros_like(ranking)
        unreachable = ~self.reachable[round_index]
        return (
            logits.masked_fill(unreachable, float("-inf")),
            None,
            ranking.masked_fill(unreachable, float("-inf")),
        )


def _hash_to_unit(key: Tensor) -> Tensor:
    """Integers to floats in [0, 1): rounds of multiply, shift and xor within 31 bits, exact on every device."""
    mask = 0x7FFFFFFF
    value = key & mask
    for multiplier in (0x45D9F3B, 0x119DE1F3, 0x45D9F3B):
        value = ((value ^ (value >> 15)) * multiplier) & mask
    return (value ^ (value >> 16)).float() / (mask + 1.0)


ROUTER_CLASSES: dict[str, type[Router]] = {
    "gru": GRURouter,
    "mlp": MLPRouter,
    "linear": LinearRouter,
    "sequential": SequentialRouter,
    "random": RandomRouter,
}


def build_router(config: MoMConfig, layout: PoolLayout, salt: int) -> Router:
    """The router that ``config.router`` names, for the pool of ``layout``."""
    return ROUTER_CLASSES[config.router](config, layout, salt)
