"""The Mixture-of-Modules language model in plain PyTorch, written to be read (Gong et al. 2024, arXiv 2407.06677).

A transformer sends every token through the same layers in the same order. A Mixture of Modules takes the layers
apart: a stage holds a pool of attention *modules*, a pool of feed-forward modules, and one *router* for each pool.
For H *rounds*, the routers choose K modules for every token, or SKIP, which does nothing, and the chosen modules are
*assembled* into the layer that this token passes through. Every token thus builds a computation graph of its own, and
the depth of that graph no longer follows from the number of parameters. This file is the paper's section 3, in order:

    embed → bottom blocks → stages → top blocks → norm → head
    stage = H × (route → assemble attention → route → assemble feed-forward) → anchor block

Nothing here is fast: it runs on the CPU, one sequence, one token, and one module at a time. ``assembly.py`` computes
the same function in a few large matmuls; the tests compare it with this file in every logit, choice, and gradient.

Shapes: T tokens, V vocabulary, D ``d_model``, F width of a feed-forward module, N modules in a pool, K ``top_k``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = dict[str, Tensor]
"""One module's parameters by name: its norm and its two projections, such as ``qkv_weight`` (D, 3D)."""


class Choice(NamedTuple):
    """One token's choice in one step: modules by their index in the pool, and index N for SKIP."""

    scores: Tensor  # (N + 1,), the probability of each module and of SKIP
    selected: list[int]  # K, best first
    weights: Tensor  # (K,)

    def assemble(self, pool: list[Module]) -> list[tuple[Module, Tensor]]:
        """Pair the chosen modules with their weights; SKIP keeps its share of the weight and adds nothing."""
        return [(pool[i], w) for i, w in zip(self.selected, self.weights, strict=True) if i < len(pool)]


Round = dict[str, list[Choice]]
"""The choices of all T tokens in one round, by pool."""


class ReferenceMoM:
    """A language model that computes, step by step, what a :class:`mom.MoMForCausalLM` with its weights does.

    Gradients flow into that model's own parameters. There is no dropout, noise, or exploration. ``training`` makes a
    difference only with a ``capacity``: modules then choose tokens.
    """

    def __init__(self, config: Any, weights: dict[str, Tensor], training: bool = False) -> None:
        if config.router not in ROUTERS:
            raise ValueError(f"`router` must be one of {', '.join(ROUTERS)}, got {config.router}")
        one_skip = config.num_skip_slots == 1 and config.ffn_skip_slots in (None, 1)
        if config.score_function != "softmax" or config.straight_through or not one_skip:
            raise ValueError("the reference needs softmax scores, one SKIP output, and no `straight_through`")
        for layout in config.pools():
            if layout.kind.name not in RUN:
                raise ValueError(f"`pools` must be of the kinds {' and '.join(RUN)}, got {layout.kind.name}")
        self.config = config
        self.weights = weights
        self.training = training

    @classmethod
    def from_model(cls, model: nn.Module) -> ReferenceMoM:
        """Share the weights and the mode of a :class:`mom.MoMForCausalLM`."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return cls(model.config, parameters | dict(model.named_buffers()), model.training)

    def __call__(self, ids: Tensor, choices: dict[str, Tensor] | None = None) -> tuple[Tensor, list[Round]]:
        """Predict every next token of one unpadded sequence, (T,) → logits (T, V) and the routing of each round.

        ``choices`` may force modules, (T, R, K) by pool; see ``choices.py``.
        """
        config, weights = self.config, self.weights
        routing: list[Round] = []
        x = weights["model.embedding.token.weight"][ids]  # (T, D)
        if config.block == "gpt2":  # Llama's positions are rotary
            x = x + weights["model.embedding.position.weight"][: len(ids)]  # (T, D)
        for index in range(config.num_bottom_blocks):
            x = self.block(f"model.bottom.{index}", x)  # (T, D)
        for index in range(config.num_stages):
            x, rounds = self.stage(index, x, ids, choices or {})  # (T, D)
            routing += rounds
        for index in range(config.num_top_blocks):
            x = self.block(f"model.top.{index}", x)  # (T, D)
        x = normalize(config, x, weights["model.norm.weight"], weights.get("model.norm.bias"))  # (T, D)
        return x @ weights["lm_head.weight"].T, routing  # (T, V)

    def block(self, name: str, x: Tensor) -> Tensor:
        """Run a plain transformer block: two pools of one module each, which every token chooses."""
        always = [Choice(torch.tensor([1.0, 0.0]), [0], torch.ones(1))] * len(x)
        x = x + run_attention(self.config, [self.module(f"{name}.attention")], always, x)  # (T, D)
        return x + run_ffn(self.config, [self.module(f"{name}.ffn")], always, x)  # (T, D)

    def stage(
        self, index: int, x: Tensor, ids: Tensor, choices: dict[str, Tensor]
    ) -> tuple[Tensor, list[Round]]:
        """Run H rounds of routing and assembly over the stage's own pools, then its anchor block."""
        config, name = self.config, f"model.stages.{index}"
        pools = [(layout, self.pool(f"{name}.{layout.name}.pool")) for layout in config.pools()]
        first = index * config.num_rounds
        forced = {pool: given[:, first : first + config.num_rounds] for pool, given in choices.items()}
        routers = [Router(self, index, layout, forced.get(layout.name)) for layout, _ in pools]
        exited = [False] * len(x)  # stays so without `absorbing_skip`
        rounds: list[Round] = []
        for h in range(config.num_rounds):
            rounds.append({})
            for (layout, pool), route in zip(
                pools, routers, strict=True
            ):  # by default attention, then feed-forward
                chosen = rounds[h][layout.name] = route(h, x, ids, exited)  # T choices
                x = x + RUN[layout.kind.name](config, pool, chosen, x)  # (T, D)
        return self.block(f"{name}.anchor", x) if config.anchors else x, rounds

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the weights of one part of the model, by their names within it."""
        return {k.removeprefix(f"{name}."): w for k, w in self.weights.items() if k.startswith(f"{name}.")}

    def pool(self, name: str) -> list[Module]:
        """Unstack a pool's weights into its N modules."""
        stacked = self.part(name)
        return [{key: w[i] for key, w in stacked.items()} for i in range(len(stacked["norm_weight"]))]

    def module(self, name: str) -> Module:
        """Return half a plain block as a module; `nn.Linear` stores its weight transposed."""
        return {key.replace(".", "_"): w.T if w.dim() == 2 else w for key, w in self.part(name).items()}


# ---- Routers (section 3.2) -------------------------------------------------------------------------------


class Router:
    """The router of one pool in one stage, shared by all rounds.

    Every token has a state of its own, which starts at zero in each stage: nothing passes between tokens here.
    """

    def __init__(self, model: ReferenceMoM, stage: int, layout: Any, forced: Tensor | None = None) -> None:
        self.model, self.config = model, model.config
        self.weights = model.part(f"model.stages.{stage}.{layout.name}.router")
        self.skip = layout.num_modules  # SKIP's index, N
        self.schedule, self.may_skip = layout.schedule, layout.skip
        self.capacity, self.training = layout.capacity, model.training
        self.top_k = self.skip + 1 if layout.top_k == "all" else layout.top_k
        self.salt = stage * len(model.config.pools()) + layout.position  # of the hash below
        self.state: dict[int, Tensor] = {}  # token → (router_dim,)
        self.forced = forced  # (T, H, K)

    def __call__(self, h: int, x: Tensor, ids: Tensor, exited: list[bool]) -> list[Choice]:
        """Choose for every token in round h, from the residual stream (T, D) without a norm."""
        route = ROUTERS[self.config.router]
        routes = {}  # token → its logits (N + 1,) and what it can reach, best first
        for t, self.token_id in enumerate(ids.tolist()):
            if not exited[t]:
                routes[t] = route(self, h, t, x[t], self.token_id)
        if "settled" in self.weights:
            kept = self.weights["settled"][h, ids].tolist()  # (T,)
            routes = {t: self.settle(h, t, kept[t], *routes[t]) for t in routes}
        if self.capacity is not None:
            self.let_modules_choose(routes)
        choices = [self.exit() if exited[t] else self.choose(h, t, *routes[t]) for t in range(len(x))]
        for t, choice in enumerate(choices):
            exited[t] = self.config.absorbing_skip and set(choice.selected) == {self.skip}
        return choices

    def settle(
        self, h: int, t: int, kept: int, logits: Tensor, ranked: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Leave a token the module that its id keeps, or SKIP (StableMoE, Dai et al. 2022, arXiv 2204.08396)."""
        if kept not in ranked or (self.forced is not None and self.forced[t, h, 0] >= 0):
            return logits, ranked
        allowed = torch.full_like(logits, -torch.inf)
        allowed[[kept, self.skip]] = logits[[kept, self.skip]]  # (N + 1,)
        return allowed, [i for i in ranked if i in (kept, self.skip)]

    def let_modules_choose(self, routes: dict[int, tuple[Tensor, list[int]]]) -> None:
        """Leave each token the modules that take it, and SKIP (expert choice, Raposo et al. 2024, arXiv 2404.02258).

        In training, a module takes the ``capacity`` share of the tokens that prefer it most to SKIP; to know whether a
        token is among them takes the tokens after it. Otherwise, it takes every token that prefers it to SKIP.
        """
        number = max(1, round(self.capacity * len(routes)))
        takes = {}
        for i in range(self.skip):
            odds = {t: float((logits[i] - logits[self.skip]).detach()) for t, (logits, _) in routes.items()}
            best = sorted(odds, key=lambda t: odds[t], reverse=True)[:number]
            takes[i] = best if self.training else [t for t in odds if odds[t] > 0]
        for t, (logits, ranked) in routes.items():
            routes[t] = logits, [i for i in ranked if i != self.skip and t in takes[i]] + [self.skip]

    def exit(self) -> Choice:
        """Choose SKIP and nothing else, for a token that has left the stage (``absorbing_skip``, early exit)."""
        return Choice(torch.eye(self.skip + 1)[self.skip], [self.skip] * self.top_k, torch.eye(self.top_k)[0])

    def choose(self, h: int, t: int, logits: Tensor, ranked: list[int]) -> Choice:
        """Choose the K best for token t in round h, SKIP included, from logits (N + 1,)."""
        if self.forced is not None:
            ranked = self.force(self.forced[t, h].tolist(), ranked)
        scores = logits.softmax(0)  # (N + 1,)
        missing = max(0, self.top_k - len(ranked))  # if too few are reachable, SKIP at weight 0 fills up
        selected = ranked[: self.top_k] + [self.skip] * missing
        rule = self.config.normalize_weights
        normalize = rule is True or (rule == "auto" and self.capacity is None)
        best = ranked[: self.top_k]
        weights = scores[best]
        if normalize and (self.top_k > 1 or rule is True):
            weights = logits[best].softmax(0)  # the scores of the chosen divided by their sum
        elif normalize:
            weights = (weights > 0).float()  # 1
            if best[0] != self.skip and weights[0]:
                among = logits[: self.skip].softmax(0)[best]
                weights = among / among.detach()  # with the gradient of the log-probability among the modules
        weights = F.pad(weights, (0, missing))  # (K,)
        if self.config.skip_rule == "first" and selected[0] == self.skip:
            selected = [self.skip] * self.top_k
        return Choice(scores, selected, weights)

    def force(self, forced: list[int], ranked: list[int]) -> list[int]:
        """Put forced modules in their places, and in the places of -1 the best of the others."""
        places = [i if i not in forced[:k] else -1 for k, i in enumerate(forced)]  # without repetitions
        others = [i for i in ranked if i not in places]
        filled = [i if i >= 0 else others.pop(0) for i in places if i >= 0 or others]
        return filled + others

    def fixed(self, own: list[int], h: int, t: int) -> tuple[Tensor, list[int]]:
        """Choose without learning: the router's own slots, or the forced modules; equal logits for each."""
        forced = [] if self.forced is None else [i for i in self.forced[t, h].tolist() if 0 <= i < self.skip]
        slots = own if own and set(forced) <= set(own) else sorted(set(forced)) or [self.skip]
        return torch.eye(self.skip + 1)[slots].mean(0).log(), slots

    def rank(self, h: int, hidden: Tensor, offset: float | Tensor = 0.0) -> tuple[Tensor, list[int]]:
        """Divide the router's outputs for what round h can reach by the temperature, and rank them."""
        logits = F.linear(hidden, self.weights["output.weight"], self.weights["output.bias"])  # (N + 1,)
        logits = logits + offset
        if "prior" in self.weights:
            logits = logits + self.weights["prior"][h]  # (N + 1,)
        reachable = self.reachable(h)
        modules = [i for i in reachable if i != self.skip]
        if self.config.router_prior == "hashed" and self.capacity is None and len(modules) > 1:
            preferred = max(modules, key=lambda i: hashed(self, h, self.token_id, i))
            bonus = self.config.router_prior_strength * self.config.temperature
            logits = logits + bonus * torch.eye(self.skip + 1)[preferred]  # (N + 1,)
        allowed = torch.full_like(logits, -torch.inf)
        allowed[reachable] = logits[reachable] / self.config.temperature  # (N + 1,)
        # The balance bias affects which modules are chosen, not their weights. The logits decide between equal sums:
        # probabilities that underflow to 0 are equal.
        ranked = allowed.detach()  # (N + 1,)
        biased = ranked.softmax(0) + self.weights.get("balance_bias", 0.0)  # (N + 1,)
        return allowed, sorted(reachable, key=lambda i: (float(biased[i]), float(ranked[i])), reverse=True)

    def reachable(self, h: int) -> list[int]:
        """List what round h may choose: every module and SKIP, unless the schedule or ``skip`` says otherwise."""
        n, rounds = self.skip, self.config.num_rounds
        modules = list(range(n))
        if self.schedule == "layerwise":  # one module per round, in order
            modules = [h % n]
        elif self.schedule == "grouped":  # the pool split evenly over the rounds, in order
            first, last = h * n // rounds, (h + 1) * n // rounds
            modules = list(range(first, max(last, first + 1)))
        return modules + [self.skip] * self.may_skip


def hashed(router: Router, h: int, token_id: int, i: int) -> int:
    """Hash token id, round, slot, and pool to a number that is as good as random."""
    value = (((token_id * 1_000_003 + h) * 8_191 + i) * 131 + router.salt) & 0x7FFFFFFF
    for multiplier in (0x45D9F3B, 0x119DE1F3, 0x45D9F3B):
        value = ((value ^ (value >> 15)) * multiplier) & 0x7FFFFFFF
    return value ^ (value >> 16)


def gru(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Route as the paper does: a GRU runs over the rounds, so each choice can depend on the ones before it."""
    w = router.weights
    s = router.state.get(t, torch.zeros(w["cell.weight_hh"].shape[1]))  # (router_dim,)
    x_r, x_z, x_n = F.linear(x, w["cell.weight_ih"], w["cell.bias_ih"]).chunk(3)  # (router_dim,) each
    s_r, s_z, s_n = F.linear(s, w["cell.weight_hh"], w["cell.bias_hh"]).chunk(3)  # (router_dim,) each
    reset, keep = torch.sigmoid(x_r + s_r), torch.sigmoid(x_z + s_z)  # (router_dim,) each
    router.state[t] = (1 - keep) * torch.tanh(x_n + reset * s_n) + keep * s  # (router_dim,)
    return router.rank(h, router.state[t])


def mlp(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Route by two layers with a ReLU in between, without a state."""
    return router.rank(h, F.linear(x, router.weights["input.weight"], router.weights["input.bias"]).relu())


def linear(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Route by one linear layer, without a state."""
    return router.rank(h, x)


def embedding(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Route by a linear layer on the stream and one on the normalized token embedding, with rows for each round.

    The embedding decides among modules only: its logits leave the probability of SKIP as it is.
    """
    modules = [i for i in router.reachable(h) if i < router.skip]
    offset = torch.zeros(router.skip + 1)
    if "rows.weight" in router.weights:
        embedded = router.model.weights["model.embedding.token.weight"][token_id].detach()  # (D,)
        normal = embedded / (embedded.square().mean() + 1e-8).sqrt()  # (D,)
        rows = router.weights["rows.weight"].view(router.config.num_rounds, router.skip, -1)[h]  # (N, D)
        logits = (rows @ normal)[modules]
        offset[modules] = logits.log_softmax(0) + math.log(len(modules))  # 0 if the embedding does not care
    return router.rank(h, x, offset)


def sequential(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Walk the pool in order, whatever the token: round h takes module h mod N."""
    return router.fixed([h % router.skip], h, t)


def random(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Choose by a hash of token id and round, uniformly: a fixed baseline that learns nothing."""
    reachable = router.reachable(h)
    chances = torch.eye(router.skip + 1)[reachable].mean(0)  # (N + 1,)
    return chances.log(), sorted(reachable, key=lambda i: hashed(router, h, token_id, i), reverse=True)


def oracle(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """Leave every choice to the caller, except where there is none."""
    reachable = router.reachable(h)
    return router.fixed(reachable if len(reachable) == 1 else [], h, t)


ROUTERS: dict[str, Callable] = {
    kind.__name__: kind for kind in (gru, mlp, linear, embedding, sequential, random, oracle)
}
"""Values of ``config.router``. Each returns logits (N + 1,) and the indices that the round can reach, best first."""


# ---- Modules and their assembly --------------------------------------------------------------------------


def run_attention(config: Any, pool: list[Module], choices: Sequence[Choice], x: Tensor) -> Tensor:
    """Run each token's attention modules as one layer, (T, D) → (T, D).

    A token's query, key, and value are sums over its modules. One multi-head attention mixes the tokens. Then each of
    the token's modules projects the result, and the router's weights sum these projections.
    """
    qkv = torch.zeros(len(x), 3 * config.d_model)
    for t, choice in enumerate(choices):
        for module, weight in choice.assemble(pool):
            normal = normalize(config, x[t], module["norm_weight"], module.get("norm_bias"))  # (D,)
            projected = normalize_heads(config, module, project(module, "qkv", normal))  # (3D,)
            qkv[t] += weight * projected if config.weight_qkv else projected  # (3D,)
    # A token that skipped attention has a key and value of 0, which `skipped_kv: mask` hides from later tokens.
    shown = [bool(choice.assemble(pool)) or config.skipped_kv == "zero" for choice in choices]
    mixed = attend(config, qkv, shown)  # (T, D)
    out = torch.zeros_like(x)
    for t, choice in enumerate(choices):
        for module, weight in choice.assemble(pool):
            out[t] += weight * project(module, "out", mixed[t])  # (D,)
    return out


def attend(config: Any, qkv: Tensor, shown: Sequence[bool]) -> Tensor:
    """Mix tokens by causal multi-head attention, (T, 3D) → (T, D); each sees itself and the earlier ones shown."""
    q, k, v = qkv.view(len(qkv), 3, config.num_heads, -1).permute(1, 2, 0, 3)  # (heads, T, D / heads) each
    if config.block == "llama":
        q, k = rotate(config, q), rotate(config, k)
    tokens = range(len(qkv))
    visible = torch.tensor([[j == i or (j < i and shown[j]) for j in tokens] for i in tokens])  # (T, T)
    scores = q @ k.mT / q.shape[-1] ** 0.5  # (heads, T, T)
    mixed = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v  # (heads, T, D / heads)
    return mixed.transpose(0, 1).flatten(1)  # (T, D)


def run_ffn(config: Any, pool: list[Module], choices: Sequence[Choice], x: Tensor) -> Tensor:
    """Run each token's feed-forward modules as one layer, the weighted sum of their outputs, (T, D) → (T, D)."""
    out = torch.zeros_like(x)
    for t, choice in enumerate(choices):
        for module, weight in choice.assemble(pool):
            normal = normalize(config, x[t], module["norm_weight"], module.get("norm_bias"))  # (D,)
            hidden = activate(config, project(module, "fc", normal))  # (F,)
            out[t] += weight * project(module, "proj", hidden)  # (D,)
    return out


RUN: dict[str, Callable] = {"attention": run_attention, "ffn": run_ffn}
"""Kinds of pools. Each function returns an update of the residual stream, (T, D)."""


def project(module: Module, name: str, x: Tensor) -> Tensor:
    """Apply one of a module's two projections; Llama's have no bias."""
    return x @ module[f"{name}_weight"] + module.get(f"{name}_bias", 0.0)


# ---- The parts of GPT-2 and Llama -----------------------------------------------------------------------


def normalize(config: Any, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Apply LayerNorm, or Llama's RMSNorm, over the last dimension."""
    if config.block == "llama":
        return F.rms_norm(x, scale.shape, scale, config.layer_norm_epsilon)
    return F.layer_norm(x, scale.shape, scale, shift, config.layer_norm_epsilon)


def normalize_heads(config: Any, module: Module, qkv: Tensor) -> Tensor:
    """With ``qk_norm``, apply RMSNorm to each head's query and key, (3D,) → (3D,)."""
    if not config.qk_norm:
        return qkv
    q, k, v = qkv.view(3, config.num_heads, -1)  # (heads, D / heads) each
    q = F.rms_norm(q, q.shape[-1:], module["q_norm_weight"], config.layer_norm_epsilon)
    k = F.rms_norm(k, k.shape[-1:], module["k_norm_weight"], config.layer_norm_epsilon)
    return torch.stack([q, k, v]).flatten()  # (3D,)


def activate(config: Any, hidden: Tensor) -> Tensor:
    """Apply GELU, (F,) → (F,), or Llama's SwiGLU, (2F,) → (F,), whose first half gates the second."""
    if config.block == "llama":
        gate, value = hidden.chunk(2)
        return F.silu(gate) * value
    return F.gelu(hidden, approximate="tanh")


def rotate(config: Any, x: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of a head by an angle that grows with position, (heads, T, D / heads)."""
    half = x.shape[-1] // 2
    frequencies = config.rope_theta ** (-torch.arange(half) / half)  # (half,)
    angles = torch.outer(torch.arange(x.shape[1]), frequencies)  # (T, half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)  # (heads, T, D / heads)
