"""Random routing records, and the depths of their tokens by a loop over one token at a time."""

from __future__ import annotations

import numpy as np
import torch

from mom.model import RoundRouting, Routing

POOLS = ("attention", "ffn")
N_ATTENTION, N_FFN, STAGES, ROUNDS, K, FIXED = 3, 4, 2, 3, 2, 4


def random_choice(num_modules: int, generator: torch.Generator, shape: tuple[int, int]) -> Routing:
    """A record of random scores; SKIP takes all places where it ranks first, as in ``skip_rule: first``."""
    logits = 2 * torch.randn(*shape, num_modules + 1, generator=generator)
    scores = logits.softmax(-1)
    weights, selected = scores.topk(K, dim=-1)
    selected = torch.where(selected[..., :1] == num_modules, num_modules, selected)
    return Routing(scores, selected, weights / weights.sum(-1, keepdim=True), logits)


def random_pass(seed: int, rows: int = 3, length: int = 5) -> tuple[tuple[RoundRouting, ...], torch.Tensor]:
    """Records of all rounds, and a mask with padding in it."""
    generator = torch.Generator().manual_seed(seed)
    routing = tuple(
        RoundRouting(
            random_choice(N_ATTENTION, generator, (rows, length)),
            random_choice(N_FFN, generator, (rows, length)),
        )
        for _ in range(STAGES * ROUNDS)
    )
    mask = torch.rand(rows, length, generator=generator) > 0.3
    return routing, mask


def slow_depths(passes: list) -> dict[str, list[float]]:
    """Depths of every real token, by the definitions of the design, one token at a time."""
    found: dict[str, list[float]] = {
        name: [] for name in ("effective", "attention", "ffn", "weighted", "modules")
    }
    for routing, mask in passes:
        for row, column in np.argwhere(mask.numpy()):
            attention = ffn = modules = 0
            weight = 0.0
            for record in routing:
                for pool, size in (("attention", N_ATTENTION), ("ffn", N_FFN)):
                    choice = getattr(record, pool)
                    taken = [
                        (int(index), float(w))
                        for index, w in zip(
                            choice.selected[row, column], choice.weights[row, column], strict=True
                        )
                        if index < size
                    ]
                    modules += len(taken)
                    weight += sum(w for _, w in taken)
                    attention += pool == "attention" and bool(taken)
                    ffn += pool == "ffn" and bool(taken)
            found["effective"].append(FIXED + 0.5 * attention + 0.5 * ffn)
            found["attention"].append(FIXED + attention)
            found["ffn"].append(FIXED + ffn)
            found["weighted"].append(FIXED + 0.5 * weight)
            found["modules"].append(2 * FIXED + modules)
    return found
