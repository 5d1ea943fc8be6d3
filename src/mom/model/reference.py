"""The Mixture-of-Modules language model in plain PyTorch, written to be read (Gong et al. 2024, arXiv 2407.06677).

A transformer sends every token through the same layers in the same order. A Mixture of Modules takes the layers
apart: a stage holds a pool of attention *modules*, a pool of feed-forward modules, and one *router* for each pool.
For H *rounds* the routers choose K modules for every token, or SKIP, which does nothing, and the chosen modules are
*assembled* into the layer that this token passes through. So every token builds a computation graph of its own, and
the depth of that graph no longer follows from the number of parameters. This file is section 3 of the paper, in order:

    embed → bottom blocks → stages → top blocks → norm → head
    stage = H × (route → assemble attention → route → assemble feed-forward) → anchor block

Nothing here is fast: it computes one sequence, one token, and one module at a time. ``modeling.py`` and ``assembly.py``
compute the same function in a few large matmuls, and are tested against this file in value and in every gradient.

Shapes: T tokens, V vocabulary, D ``d_model``, F hidden width of a feed-forward module, N modules in a pool,
K ``top_k``, H ``num_rounds``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = dict[str, Tensor]
"""One module's parameters by name: its norm and two projections, such as ``qkv_weight`` (D, 3D)."""

Assembly = list[tuple[Module, Tensor]]
"""The modules that one token runs in one step, with their weights; empty if the token skips the step."""


class Choice(NamedTuple):
    """What a router chose for one token in one round; index N is SKIP.

    Attributes:
        scores: probability of each module and of SKIP, (N + 1,).
        selected: the K choices, best first.
        weights: weight of each choice, (K,).
    """

    scores: Tensor
    selected: list[int]
    weights: Tensor

    def assemble(self, pool: list[Module]) -> Assembly:
        """Pair the chosen modules with their weights: SKIP keeps its share of the weight and adds nothing."""
        return [(pool[i], w) for i, w in zip(self.selected, self.weights, strict=True) if i < len(pool)]


class Round(NamedTuple):
    """The choices of one round, one per token and pool."""

    attention: list[Choice]
    ffn: list[Choice]


# ---------------------------------------------------------------------------------------------- the model


class ReferenceMoM:
    """The whole language model, computed from the weights of a :class:`mom.MoMForCausalLM`.

    Gradients flow into that model's own parameters. There is no dropout: compare with the model in evaluation mode.

    Args:
        config: a :class:`mom.MoMConfig`.
        weights: parameters and buffers by the names that they have in the model.

    Raises:
        ValueError: ``config`` uses an option that only serves the authors' checkpoints, or a router of your own.
    """

    def __init__(self, config: Any, weights: dict[str, Tensor]) -> None:
        supported: dict[str, tuple] = {
            "router": tuple(ROUTERS),
            "score_function": ("softmax",),
            "straight_through": (False,),
            "num_skip_slots": (1,),
            "ffn_skip_slots": (None, 1),
        }
        for option, values in supported.items():
            if (value := getattr(config, option)) not in values:
                raise ValueError(f"`{option}` must be one of {values} for the reference model, got {value!r}")
        self.config = config
        self.weights = weights

    @classmethod
    def from_model(cls, model: nn.Module) -> ReferenceMoM:
        """Share the weights of a :class:`mom.MoMForCausalLM`."""
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        return cls(model.config, tensors)

    def __call__(self, ids: Tensor) -> tuple[Tensor, list[Round]]:
        """Predict the next token at every position of one sequence without padding.

        Args:
            ids: token ids, (T,).

        Returns:
            Logits, (T, V), and the routing of every round, stages in order.
        """
        config, weights = self.config, self.weights
        routing: list[Round] = []
        x = self.embed(ids)  # (T, D)
        for index in range(config.num_bottom_blocks):
            x = self.block(f"bottom.{index}", x)  # (T, D)
        for index in range(config.num_stages):
            x, rounds = self.assemble(index, x, ids)  # (T, D)
            routing += rounds
            if config.anchors:
                x = self.block(f"stages.{index}.anchor", x)  # (T, D)
        for index in range(config.num_top_blocks):
            x = self.block(f"top.{index}", x)  # (T, D)
        x = normalize(config, x, weights["model.norm.weight"], weights.get("model.norm.bias"))  # (T, D)
        return x @ weights["lm_head.weight"].T, routing  # (T, V)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed tokens, plus their positions unless attention is rotary, (T,) → (T, D)."""
        embedding = self.part("embedding")
        x = embedding["token.weight"][ids]  # (T, D)
        return x if is_llama(self.config) else x + embedding["position.weight"][: len(ids)]

    def block(self, name: str, x: Tensor) -> Tensor:
        """Run a plain transformer block: one attention and one feed-forward module, the same for all tokens."""
        everywhere = x.new_ones(())
        attention, ffn = self.plain_module(f"{name}.attention"), self.plain_module(f"{name}.ffn")
        x = x + run_attention(self.config, [[(attention, everywhere)]] * len(x), x)  # (T, D)
        return x + run_ffn(self.config, [[(ffn, everywhere)]] * len(x), x)  # (T, D)

    def assemble(self, stage: int, x: Tensor, ids: Tensor) -> tuple[Tensor, list[Round]]:
        """Run the H rounds of a stage: in each, assemble an attention layer and then a feed-forward layer."""
        config, name = self.config, f"stages.{stage}"
        attention_pool, ffn_pool = self.pool(f"{name}.attention.pool"), self.pool(f"{name}.ffn.pool")
        route_attention = Router(
            config, "attention", self.part(f"{name}.attention.router"), attention_pool, stage
        )
        route_ffn = Router(config, "ffn", self.part(f"{name}.ffn.router"), ffn_pool, stage)
        exited = [False] * len(x)
        rounds = []
        for h in range(config.num_rounds):
            attention = route_attention(h, x, ids)  # T choices
            attention, exited = absorb(config, attention, exited)
            x = x + run_attention(config, [one.assemble(attention_pool) for one in attention], x)  # (T, D)

            ffn = route_ffn(h, x, ids)  # T choices
            ffn, exited = absorb(config, ffn, exited)
            x = x + run_ffn(config, [one.assemble(ffn_pool) for one in ffn], x)  # (T, D)
            rounds.append(Round(attention, ffn))
        return x, rounds

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the weights of one part of the model, by their names within it."""
        prefix = f"model.{name}."
        return {key.removeprefix(prefix): w for key, w in self.weights.items() if key.startswith(prefix)}

    def pool(self, name: str) -> list[Module]:
        """Unstack a pool into its N modules."""
        stacked = self.part(name)
        return [{key: w[i] for key, w in stacked.items()} for i in range(len(stacked["norm_weight"]))]

    def plain_module(self, name: str) -> Module:
        """Return half a plain block as a module; `nn.Linear` holds its weight transposed."""
        return {key.replace(".", "_"): w.T if w.dim() == 2 else w for key, w in self.part(name).items()}


# ------------------------------------------------------------------------------------- routers (section 3.2)


class Router:
    """The router of one pool in one stage; it serves all rounds, and its state belongs to a token.

    Args:
        config: a :class:`mom.MoMConfig`.
        name: ``attention`` or ``ffn``, the pool to choose from.
        weights: the router's weights, by their names within it.
        pool: the N modules to choose from.
        stage: index of the stage.
    """

    def __init__(
        self, config: Any, name: str, weights: dict[str, Tensor], pool: list[Module], stage: int
    ) -> None:
        def option(key: str) -> Any:
            own = getattr(config, f"ffn_{key}") if name == "ffn" else None
            return getattr(config, key) if own is None else own

        self.config = config
        self.weights = weights
        self.skip = len(pool)
        self.schedule, self.may_skip = option("schedule"), option("skip")
        self.top_k = self.skip + 1 if option("top_k") == "all" else option("top_k")
        self.state: dict[int, Tensor] = {}
        self.salt = 2 * stage + (name == "ffn")

    def __call__(self, h: int, x: Tensor, ids: Tensor) -> list[Choice]:
        """Choose for every token, from the residual stream (T, D) as it is, without a norm."""
        return [self.choose(h, t, x[t], int(ids[t])) for t in range(len(x))]

    def choose(self, h: int, t: int, x: Tensor, token_id: int) -> Choice:
        """Choose the K best modules, SKIP included, for token t in round h."""
        scores, order = ROUTERS[self.config.router](self, h, t, x, token_id)  # (N + 1,)
        selected = order[: self.top_k]
        missing = self.top_k - len(selected)  # choices that this round cannot reach: SKIP, with weight 0
        weights = F.pad(scores[selected], (0, missing))  # (K,)
        selected = selected + [self.skip] * missing
        # At K = 1 a normalized weight is always 1, and the router would get no gradient.
        normalized = self.config.normalize_weights
        if normalized is True or (normalized == "auto" and self.top_k > 1):
            weights = weights / weights.sum()  # (K,)
        if self.config.skip_rule == "first" and selected[0] == self.skip:
            selected = [self.skip] * self.top_k
        return Choice(scores, selected, weights)

    def rank(self, h: int, hidden: Tensor) -> tuple[Tensor, list[int]]:
        """Score what round h can reach by a softmax of the router's output, and rank it."""
        logits = F.linear(hidden, self.weights["output.weight"], self.weights["output.bias"])  # (N + 1,)
        if "prior" in self.weights:
            logits = logits + self.weights["prior"][h]
        reachable = self.reachable(h)
        scores = torch.zeros_like(logits)
        scores[reachable] = (logits[reachable] / self.config.temperature).softmax(0)  # (N + 1,)
        # A balance bias counts in the ranking and not in the weights.
        ranking = scores.detach() + self.weights.get("balance_bias", 0.0)  # (N + 1,)
        return scores, sorted(reachable, key=lambda i: float(ranking[i]), reverse=True)

    def reachable(self, h: int) -> list[int]:
        """List what round h may choose: by default every module, and SKIP."""
        n, rounds = self.skip, self.config.num_rounds
        modules = list(range(n))
        if self.schedule == "layerwise":  # one module per round, in order
            modules = [h % n]
        elif self.schedule == "grouped":  # the pool split evenly over the rounds, in order
            first, last = h * n // rounds, (h + 1) * n // rounds
            modules = list(range(first, max(last, first + 1)))
        return modules + [self.skip] * self.may_skip


def gru(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """The paper's router: a GRU over the rounds, so that a choice knows of the choices before it."""
    weights = router.weights
    before = router.state.get(t, x.new_zeros(weights["cell.weight_hh"].shape[1]))  # (router_dim,)
    x_r, x_z, x_n = F.linear(x, weights["cell.weight_ih"], weights["cell.bias_ih"]).chunk(3)
    s_r, s_z, s_n = F.linear(before, weights["cell.weight_hh"], weights["cell.bias_hh"]).chunk(3)
    reset, update = torch.sigmoid(x_r + s_r), torch.sigmoid(x_z + s_z)  # (router_dim,) each
    new = torch.tanh(x_n + reset * s_n)  # (router_dim,)
    router.state[t] = (1 - update) * new + update * before  # (router_dim,)
    return router.rank(h, router.state[t])


def mlp(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """A router of two layers, without a state."""
    return router.rank(h, F.relu(F.linear(x, router.weights["input.weight"], router.weights["input.bias"])))


def linear(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """A router of one layer, without a state."""
    return router.rank(h, x)


def sequential(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """No choice: round h takes module h mod N."""
    scores = x.new_zeros(router.skip + 1)
    scores[h % router.skip] = 1.0
    return scores, [h % router.skip]


def random(router: Router, h: int, t: int, x: Tensor, token_id: int) -> tuple[Tensor, list[int]]:
    """A baseline: a hash of token id and round chooses, uniformly among what the round can reach."""

    def hashed(i: int) -> int:
        key = ((token_id * 1_000_003 + h) * 8_191 + i) * 131 + router.salt
        value = key & 0x7FFFFFFF
        for multiplier in (0x45D9F3B, 0x119DE1F3, 0x45D9F3B):
            value = ((value ^ (value >> 15)) * multiplier) & 0x7FFFFFFF
        return value ^ (value >> 16)

    reachable = router.reachable(h)
    scores = x.new_zeros(router.skip + 1)
    scores[reachable] = 1 / len(reachable)
    return scores, sorted(reachable, key=hashed, reverse=True)


ROUTERS: dict[str, Callable] = {kind.__name__: kind for kind in (gru, mlp, linear, sequential, random)}
"""Values of ``config.router``: each returns the scores, (N + 1,), and what the round can reach, best first."""


# ------------------------------------------------------------------------------- modules, assembled and run


def run_attention(config: Any, assemblies: Sequence[Assembly], x: Tensor) -> Tensor:
    """Run each token's attention modules as one layer, (T, D) → (T, D).

    A token's query, key, and value are the sums of its modules' projections. One multi-head attention mixes the
    tokens. Then each of the token's modules projects the result, and the router's weights sum these outputs.
    """
    qkv = x.new_zeros(len(x), 3 * config.d_model)  # (T, 3D)
    for t, assembly in enumerate(assemblies):
        for module, weight in assembly:
            projected = project_qkv(config, module, x[t])  # (3D,)
            qkv[t] += weight * projected if config.weight_qkv else projected
    mixed = attend(config, qkv, visible_keys(config, assemblies))  # (T, D)
    out = torch.zeros_like(x)  # (T, D)
    for t, assembly in enumerate(assemblies):
        for module, weight in assembly:
            out[t] += weight * project(module, "out", mixed[t])
    return out


def run_ffn(config: Any, assemblies: Sequence[Assembly], x: Tensor) -> Tensor:
    """Run each token's feed-forward modules as one layer, (T, D) → (T, D): the weighted sum of their outputs."""
    out = torch.zeros_like(x)  # (T, D)
    for t, assembly in enumerate(assemblies):
        for module, weight in assembly:
            normal = normalize(config, x[t], module["norm_weight"], module.get("norm_bias"))  # (D,)
            hidden = activate(config, project(module, "fc", normal))  # (F,)
            out[t] += weight * project(module, "proj", hidden)
    return out


def project_qkv(config: Any, module: Module, x: Tensor) -> Tensor:
    """Apply one attention module's norm and first projection to one token, (D,) → (3D,)."""
    normal = normalize(config, x, module["norm_weight"], module.get("norm_bias"))  # (D,)
    qkv = project(module, "qkv", normal)  # (3D,)
    return normalize_heads(config, module, qkv) if config.qk_norm else qkv


def project(module: Module, name: str, x: Tensor) -> Tensor:
    """Apply one of a module's two projections; Llama's have no bias."""
    return x @ module[f"{name}_weight"] + module.get(f"{name}_bias", 0.0)


def attend(config: Any, qkv: Tensor, visible: Tensor) -> Tensor:
    """Mix the tokens by multi-head attention over q, k, and v that are already projected.

    Args:
        config: a :class:`mom.MoMConfig`.
        qkv: (T, 3D).
        visible: the keys that each query sees, boolean (T, T).

    Returns:
        (T, D).
    """
    heads = qkv.view(len(qkv), 3, config.num_heads, -1)  # (T, 3, heads, D / heads)
    q, k, v = heads.permute(1, 2, 0, 3)  # (heads, T, D / heads) each
    if is_llama(config):
        q, k = rotate(config, q), rotate(config, k)
    scores = q @ k.mT / q.shape[-1] ** 0.5  # (heads, T, T)
    mixed = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v  # (heads, T, D / heads)
    return mixed.transpose(0, 1).flatten(1)  # (T, D)


def visible_keys(config: Any, assemblies: Sequence[Assembly]) -> Tensor:
    """Say which keys each query sees: those up to its own position, boolean (T, T).

    A token that skipped attention has no key. ``skipped_kv: zero`` leaves it a key and a value of 0, as the authors'
    code does; ``mask`` hides it from all others, and its own output is not used.
    """

    def sees(query: int, key: int) -> bool:
        hidden = config.skipped_kv == "mask" and not assemblies[key] and query != key
        return key <= query and not hidden

    positions = range(len(assemblies))
    return torch.tensor([[sees(query, key) for key in positions] for query in positions])


# ------------------------------------------------------------------------------------------------- losses


def training_loss(reference: ReferenceMoM, ids: Tensor) -> Tensor:
    """Sum the language-model loss and the balance loss of a batch, (B, T) → scalar."""
    config, rounds = reference.config, reference.config.num_rounds
    outputs = [reference(sequence) for sequence in ids]
    logits = torch.stack([logits for logits, _ in outputs])  # (B, T, V)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for first in range(0, config.num_stages * rounds, rounds):
        stage = [one for _, routing in outputs for one in routing[first : first + rounds]]  # B · H rounds
        for pool in zip(*stage, strict=True):  # attention, then feed-forward
            choices = [choice for one in pool for choice in one]  # B · H · T
            loss = loss + config.balance_coefficient * balance_loss(choices, config.balance_skip)
    return loss


def balance_loss(choices: Sequence[Choice], include_skip: bool = True) -> Tensor:
    """Return ``n · Σ f_i P_i`` over a pool's n options, which is 1 if all are used alike (Fedus et al. 2021, eq. 4).

    Args:
        choices: those of all tokens and of all rounds of a stage.
        include_skip: whether SKIP is one of the n options.
    """
    scores = torch.stack([choice.scores for choice in choices])  # (M, N + 1), M = B · H · T
    selected = torch.tensor([choice.selected for choice in choices])  # (M, K)
    counts = selected.flatten().bincount(minlength=scores.shape[1])  # (N + 1,)
    n = scores.shape[1] if include_skip else scores.shape[1] - 1
    frequency = counts[:n] / counts[:n].sum()  # (n,)
    probability = scores.sum(0)[:n] / scores.sum(0)[:n].sum()  # (n,)
    return n * (frequency @ probability)


# ----------------------------------------------------------------------------------------------- variants


def absorb(config: Any, choices: list[Choice], exited: list[bool]) -> tuple[list[Choice], list[bool]]:
    """With ``absorbing_skip``, a token that ran no module in a step takes SKIP until the stage ends (early exit)."""
    if not config.absorbing_skip:
        return choices, exited
    for t, (scores, selected, weights) in enumerate(choices):
        skip = len(scores) - 1
        if exited[t]:
            certain = [
                F.one_hot(torch.tensor(i), len(like)).to(like) for i, like in ((skip, scores), (0, weights))
            ]
            choices[t] = Choice(certain[0], [skip] * len(selected), certain[1])
        exited[t] = all(i == skip for i in choices[t].selected)
    return choices, exited


def is_llama(config: Any) -> bool:
    """Tell Llama's components (RMSNorm, rotary positions, SwiGLU, no biases) from GPT-2's."""
    return config.block == "llama"


def normalize(config: Any, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Apply LayerNorm, or Llama's RMSNorm, over the last dimension."""
    if is_llama(config):
        return F.rms_norm(x, scale.shape, scale, config.layer_norm_epsilon)
    return F.layer_norm(x, scale.shape, scale, shift, config.layer_norm_epsilon)


def activate(config: Any, hidden: Tensor) -> Tensor:
    """Apply GELU, (F,) → (F,), or Llama's SwiGLU, (2F,) → (F,), whose first half gates the second."""
    if is_llama(config):
        gate, value = hidden.chunk(2)
        return F.silu(gate) * value
    return F.gelu(hidden, approximate="tanh")


def normalize_heads(config: Any, module: Module, qkv: Tensor) -> Tensor:
    """Apply RMSNorm to each head's query and key, with the module's own scales (``qk_norm``), (3D,) → (3D,)."""
    q, k, v = qkv.view(3, config.num_heads, -1)  # (heads, D / heads) each
    q = F.rms_norm(q, q.shape[-1:], module["q_norm_weight"], config.layer_norm_epsilon)
    k = F.rms_norm(k, k.shape[-1:], module["k_norm_weight"], config.layer_norm_epsilon)
    return torch.stack([q, k, v]).flatten()


def rotate(config: Any, x: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of a head by an angle that grows with the position, (heads, T, D / heads)."""
    half = x.shape[-1] // 2
    frequencies = config.rope_theta ** (-torch.arange(half) / half)  # (half,)
    angles = torch.outer(torch.arange(x.shape[1]), frequencies)  # (T, half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)
