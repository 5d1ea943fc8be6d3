"""Random routing records, and a reference implementation of their tokens' depths."""

from __future__ import annotations

import numpy as np
import torch

from mom.model import RoundRouting, Routing

POOLS = ("attention", "ffn")
N_ATTENTION, N_FFN, STAGES, ROUNDS, K, FIXED = 3, 4, 2, 3, 2, 4


def random_choice(num_modules: int, generator: torch.Generator, shape: tuple[int, int]) -> Routing:
    """Return a record of random scores; a SKIP ranked first takes all assignments, as in ``skip_rule: first``."""
    logits = 2 * torch.randn(*shape, num_modules + 1, generator=generator)
    scores = logits.softmax(-1)
    weights, selected = scores.topk(K, dim=-1)
    selected = torch.where(selected[..., :1] == num_modules, num_modules, selected)
    return Routing(scores, selected, weights / weights.sum(-1, keepdim=True), logits)


def random_pass(seed: int, rows: int = 3, length: int = 5) -> tuple[tuple[RoundRouting, ...], torch.Tensor]:
    """Return the records of all rounds, and a mask with padding."""
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
    """Return the depths of every real token by their definitions, one token at a time."""
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
