"""The assembly as plainly as it can be written: one sequence, one round, one token, one module at a time.

An independent statement of DESIGN §1 that every fast path is compared with, in value and in every gradient. It
reads the weights of a real model and nothing else of it: no dispatch, no stacked products, no masks, no cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def twin_logits(model, tokens: Tensor) -> tuple[Tensor, list]:
    """Logits [T, V] of one unpadded sequence of token ids [T], and (scores, selected, weights) of each step."""
    config, body = model.config, model.model
    x = [body.embedding.token.weight[t] for t in tokens]
    if config.block == "gpt2":
        x = [token + body.embedding.position.weight[i] for i, token in enumerate(x)]
    record: list = []
    for block in body.bottom:
        x = plain_block(config, block, x)
    for stage in body.stages:
        x = assembly(config, stage, x, tokens, record)
        if stage.anchor is not None:
            x = plain_block(config, stage.anchor, x)
    for block in body.top:
        x = plain_block(config, block, x)
    final = [norm(config, token, body.norm.weight, getattr(body.norm, "bias", None)) for token in x]
    return torch.stack(final) @ model.lm_head.weight.T, record


def assembly(config, stage, x: list[Tensor], tokens: Tensor, record: list) -> list[Tensor]:
    """H rounds: choose attention modules, attend, choose feed-forward modules."""
    states_a, states_f = [None] * len(x), [None] * len(x)
    pool_a, pool_f = stage.attention.pool, stage.ffn.pool
    n_a, n_f = config.num_attention_modules, config.num_ffn_modules
    gone = [False] * len(x)
    for h in range(config.num_rounds):
        chosen = [
            route(config, stage.attention.router, h, n_a, x[t], states_a, t, tokens) for t in range(len(x))
        ]
        chosen = absorb(config, chosen, n_a, gone)
        record.append(chosen)
        q, k, v, ran = [], [], [], []
        for t in range(len(x)):
            qkv = torch.zeros(3 * config.d_model)
            for i, w in modules(chosen[t], n_a):
                normal = norm(config, x[t], pool_a.norm_weight[i], of(pool_a.norm_bias, i))
                out = normal @ pool_a.qkv_weight[i] + of(pool_a.qkv_bias, i)
                if config.qk_norm:
                    out = qk_normed(config, out, pool_a.q_norm_weight[i], pool_a.k_norm_weight[i])
                qkv = qkv + (w * out if config.weight_qkv else out)
            for parts, part in zip((q, k, v), qkv.split(config.d_model), strict=True):
                parts.append(part if parts is v else turned(config, part, t))
            ran.append(bool(modules(chosen[t], n_a)))
        after = []
        for t in range(len(x)):
            seen = [s for s in range(t + 1) if config.skipped_kv == "zero" or ran[s] or s == t]
            mixed = attend(config, q[t], [k[s] for s in seen], [v[s] for s in seen])
            update = torch.zeros(config.d_model)
            for i, w in modules(chosen[t], n_a):
                update = update + w * (mixed @ pool_a.out_weight[i] + of(pool_a.out_bias, i))
            after.append(x[t] + update)
        x = after

        chosen = [route(config, stage.ffn.router, h, n_f, x[t], states_f, t, tokens) for t in range(len(x))]
        chosen = absorb(config, chosen, n_f, gone)
        record.append(chosen)
        after = []
        for t in range(len(x)):
            update = torch.zeros(config.d_model)
            for i, w in modules(chosen[t], n_f):
                normal = norm(config, x[t], pool_f.norm_weight[i], of(pool_f.norm_bias, i))
                hidden = activation(config, normal @ pool_f.fc_weight[i] + of(pool_f.fc_bias, i))
                update = update + w * (hidden @ pool_f.proj_weight[i] + of(pool_f.proj_bias, i))
            after.append(x[t] + update)
        x = after
    return x


def modules(choice: tuple, num_modules: int) -> list[tuple[int, Tensor]]:
    """The (module, weight) pairs that run: SKIP takes its share of the weight and contributes nothing."""
    _, selected, weights = choice
    return [(i, w) for i, w in zip(selected, weights, strict=True) if i < num_modules]


def absorb(config, chosen: list[tuple], n: int, gone: list[bool]) -> list[tuple]:
    """Who has left takes SKIP; who took no module has left from now on, if SKIP is absorbing."""
    out = []
    for t, choice in enumerate(chosen):
        k = len(choice[1])
        if gone[t]:
            skip = torch.tensor([0.0] * n + [1.0])
            choice = (skip, [n] * k, [torch.tensor(1.0)] + [torch.tensor(0.0)] * (k - 1))
        gone[t] = config.absorbing_skip and not modules(choice, n)
        out.append(choice)
    return out


def route(config, router, h: int, n: int, x: Tensor, states: list, t: int, tokens: Tensor) -> tuple:
    """(scores over N modules and SKIP, K selected, K weights) of one token in one round."""
    allowed = [reachable(config, router.layout, h, i) for i in range(n + 1)]
    if config.router == "sequential":
        scores = torch.tensor([1.0 if i == h % n else 0.0 for i in range(n + 1)])
        order = [h % n] + [n] * n
    elif config.router == "random":
        scores = torch.tensor([float(a) for a in allowed]) / sum(allowed)
        _, _, ranking = router.score(x.view(1, 1, -1), None, h, tokens[t].view(1, 1))
        order = sorted(range(n + 1), key=lambda i: -float(ranking[0, 0, i]))
    else:
        if config.router == "gru":
            g_x = router.cell.weight_ih @ x + router.cell.bias_ih
            s = torch.zeros(config.router_dim) if states[t] is None else states[t]
            g_h = router.cell.weight_hh @ s + router.cell.bias_hh
            (x_r, x_z, x_n), (h_r, h_z, h_n) = g_x.chunk(3), g_h.chunk(3)
            r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
            new = torch.tanh(x_n + r * h_n)
            states[t] = new + z * (s - new)
            hidden = states[t]
        elif config.router == "mlp":
            hidden = torch.relu(router.input.weight @ x + router.input.bias)
        else:
            hidden = x
        logits = router.output.weight @ hidden + router.output.bias
        if router.prior is not None:
            logits = logits + router.prior[h]
        exps = [
            ((logits[i] - logits.max().detach()) / config.temperature).exp() * allowed[i]
            for i in range(n + 1)
        ]
        scores = torch.stack(exps) / sum(exps)
        bias = torch.zeros(n + 1) if router.balance_bias is None else router.balance_bias
        order = sorted(
            (i for i in range(n + 1) if allowed[i]), key=lambda i: -float(scores[i].detach() + bias[i])
        )
    k = config.ffn_top_k if router.layout.name == "ffn" and config.ffn_top_k else config.top_k
    k = n + 1 if k == "all" else k
    order = (order + [i for i in range(n + 1) if i not in order])[:k]
    weights = [scores[i] for i in order]
    if config.router == "sequential":
        weights = [torch.tensor(1.0)] + [torch.tensor(0.0)] * (k - 1)
    if config.normalize_weights is True or (config.normalize_weights == "auto" and k > 1):
        total = sum(weights)
        weights = [w / total for w in weights]
    order = [i if allowed[i] else n for i in order]
    if config.skip_rule == "first" and order[0] == n:
        order = [n] * k
    return scores, order, weights


def reachable(config, layout, h: int, i: int) -> bool:
    """Whether round h may choose slot i; the last slot is SKIP."""
    n, rounds = layout.num_modules, config.num_rounds
    if i == n:
        return layout.skip
    if layout.schedule == "layerwise":
        return i == h % n
    if layout.schedule == "grouped":
        return h * n // rounds <= i < max((h + 1) * n // rounds, h * n // rounds + 1)
    return True


def attend(config, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query over the keys it sees, head by head."""
    heads, width = config.num_heads, config.d_model // config.num_heads
    out = []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        p = torch.stack([q[at] @ key[at] / width**0.5 for key in keys]).softmax(0)
        out.append(sum(p[s] * values[s][at] for s in range(len(values))))
    return torch.cat(out)


def plain_block(config, block, x: list[Tensor]) -> list[Tensor]:
    """A GPT-2 or Llama layer."""
    attention, ffn = block.attention, block.ffn
    q, k, v = [], [], []
    for t, token in enumerate(x):
        qkv = attention.qkv(norm(config, token, attention.norm.weight, getattr(attention.norm, "bias", None)))
        if config.qk_norm:
            qkv = qk_normed(config, qkv, attention.q_norm.weight, attention.k_norm.weight)
        parts = qkv.split(config.d_model)
        q.append(turned(config, parts[0], t))
        k.append(turned(config, parts[1], t))
        v.append(parts[2])
    mixed = [attend(config, q[t], k[: t + 1], v[: t + 1]) for t in range(len(x))]
    x = [token + attention.out(m) for token, m in zip(x, mixed, strict=True)]
    out = []
    for token in x:
        hidden = ffn.fc(norm(config, token, ffn.norm.weight, getattr(ffn.norm, "bias", None)))
        out.append(token + ffn.proj(activation(config, hidden)))
    return out


def of(biases: Tensor | None, i: int) -> Tensor | float:
    """Module i's bias; 0 where there are none."""
    return 0.0 if biases is None else biases[i]


def norm(config, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """LayerNorm, or RMSNorm for Llama."""
    if config.block == "gpt2":
        return (x - x.mean()) / (x.var(correction=0) + config.layer_norm_epsilon).sqrt() * scale + shift
    return x / (x.square().mean() + config.layer_norm_epsilon).sqrt() * scale


def activation(config, hidden: Tensor) -> Tensor:
    """Tanh-GELU, or SwiGLU for Llama: the first half gates the second."""
    if config.block == "gpt2":
        return F.gelu(hidden, approximate="tanh")
    half = len(hidden) // 2
    return hidden[:half] * torch.sigmoid(hidden[:half]) * hidden[half:]


def qk_normed(config, qkv: Tensor, q_scale: Tensor, k_scale: Tensor) -> Tensor:
    """RMSNorm of each head of q and of k."""
    q, k, v = qkv.split(config.d_model)
    width = config.d_model // config.num_heads
    heads = [
        part / (part.square().mean() + config.layer_norm_epsilon).sqrt() * scale
        for vector, scale in ((q, q_scale), (k, k_scale))
        for part in vector.split(width)
    ]
    return torch.cat([*heads, v])


def turned(config, vector: Tensor, position: int) -> Tensor:
    """Rotary positions: in each head the pair (i, i + half) turns as a complex number."""
    if config.block == "gpt2":
        return vector
    half = config.d_model // config.num_heads // 2
    heads = []
    for head in vector.split(2 * half):
        angles = torch.tensor([position / config.rope_theta ** (i / half) for i in range(half)])
        pairs = torch.complex(head[:half], head[half:]) * torch.polar(torch.ones(half), angles)
        heads += [pairs.real, pairs.imag]
    return torch.cat(heads)
