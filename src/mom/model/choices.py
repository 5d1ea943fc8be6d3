"""Forced choices: modules that the caller, instead of a router, gives to tokens.

A model's argument ``choices`` maps the name of a pool to module indices, int64, in one of three shapes:

- [B, T, R, K]: for every token, round, and place, R being the rounds of all stages in order. K may be less than the
  pool's; the router fills the other places;
- [B, T, R]: the first place only;
- [B, T]: the first place, the same in every round.

Index N is SKIP and -1 leaves a place to the router. A module named twice by a token counts once. Forced modules run
with the weights that the router gives them, so the record of a forward pass (``routing[r].ffn.selected``) given as
choices reproduces it. SKIP can be forced in every pool, even where routers cannot choose it. Tokens that exited a stage
(``absorbing_skip``) stay out. With a cache, choices are those of the current tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Choices = Mapping[str, Tensor]


Forced = list[tuple[Tensor | None, ...]]
"""The choices of a stage: for each round and pool [B, T, K], or ``None`` if the router chooses everything."""


def split_choices(choices: Choices | None, stages: Sequence[Any], batch: int, length: int) -> list[Forced]:
    """Check choices and split them by stage, round, and pool.

    The values are checked unless the model is being compiled; an unreachable module then gets weight 0.

    Args:
        choices: the model's argument.
        stages: the model's :class:`mom.model.assembly.Stage` modules.
        batch: sequences B.
        length: tokens T.

    Raises:
        ValueError: a pool, shape, or index does not fit the model, or a router that needs choices has none.
    """
    names = [pool.layout.name for pool in stages[0].pools] if stages else []
    if unknown := set(choices or {}) - set(names):
        pools = ", ".join(names) or "none, because it has no stages"
        raise ValueError(
            f"`choices` must name pools of the model ({pools}), got {', '.join(sorted(unknown))}"
        )
    total = sum(stage.num_rounds for stage in stages)
    full = {name: _all_rounds(name, given, (batch, length, total)) for name, given in (choices or {}).items()}
    result: list[Forced] = []
    for stage in stages:
        first = sum(len(rounds) for rounds in result)
        columns: list[Sequence[Tensor | None]] = []
        for pool in stage.pools:
            given = full.get(pool.layout.name)
            own = None if given is None else given[:, :, first : first + stage.num_rounds]  # (B, T, H, K)
            _check(pool, own, first, stage.num_rounds)
            columns.append([None] * stage.num_rounds if own is None else _places(pool, own).unbind(2))
        result.append(list(zip(*columns, strict=True)))
    return result


def _all_rounds(name: str, given: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return choices as [B, T, R, K]."""
    full = given[:, :, None].expand(*given.shape, shape[2]) if given.dim() == 2 else given
    full = full[..., None] if full.dim() == 3 else full
    if full.shape[:-1] != shape or full.dtype != torch.int64:
        raise ValueError(
            f"`choices[{name!r}]` must be int64 of shape [B, T], [B, T, R], or [B, T, R, K] with B, T, R = "
            f"{', '.join(map(str, shape))}, got {given.dtype} of shape {list(given.shape)}"
        )
    return full


def _places(pool: Any, given: Tensor) -> Tensor:
    """Leave the places that were not given to the router, [B, T, H, K' ≤ K] → [B, T, H, K]."""
    return F.pad(given, (0, pool.router.top_k - given.shape[-1]), value=-1)


def _check(pool: Any, given: Tensor | None, first: int, num_rounds: int) -> None:
    """Check the choices of a stage's pool, [B, T, H, K]; ``first`` is the stage's first round."""
    name, router, modules = pool.layout.name, pool.router, pool.layout.num_modules
    reachable = router.reachable[:num_rounds]  # (H, slots)
    if given is not None and given.shape[-1] > router.top_k:
        raise ValueError(
            f"`choices[{name!r}]` must have at most top_k ({router.top_k}) places, got {given.shape[-1]}"
        )
    if torch.compiler.is_compiling():
        return
    if router.kind.needs_choices:
        open_rounds = reachable.sum(-1) > 1  # (H,)
        missing = open_rounds.any() if given is None else ((given[..., 0] < 0) & open_rounds).any()
        if missing:
            raise ValueError(
                f"router={router.kind.name} requires `choices[{name!r}]` for every token and round with more than "
                "one choice, because it chooses nothing itself"
            )
    if given is None:
        return
    if not ((given >= -1) & (given <= modules)).all():
        raise ValueError(
            f"`choices[{name!r}]` must be between -1 (the router's own choice) and {modules} (SKIP), got values "
            f"from {int(given.min())} to {int(given.max())}"
        )
    allowed = F.pad(reachable[:, :modules], (0, 2), value=True)  # (H, N + 2): modules, SKIP, -1
    rounds = torch.arange(num_rounds, device=given.device)[:, None]
    possible = allowed[rounds, given]  # (B, T, H, K); index -1 is the last column
    if not possible.all():
        *_, h, k = (~possible).nonzero()[0].tolist()
        module = int(given[..., h, k][~possible[..., h, k]][0])
        raise ValueError(
            f"`choices[{name!r}]` must be reachable modules, got {module} in round {first + h}, which can reach "
            f"{reachable[h, :modules].nonzero().flatten().tolist()}"
        )
