"""Measure the regret of the routers' choices, by swaps of single choices and by a search over whole paths.

For a sample of tokens, other choices take the place of a token's own, one at a time; all other choices, of this token
and of all others, stay as recorded. Only the token itself and later tokens can change, so what counts is the sum of
their losses until the end of the window. Where a token has K choices in a step, the first is swapped.

The best path of a token is searched in each pool and in all pools together: among all paths if there are few, or by
taking the best swap as long as one helps. Half of the budget is for swaps, and half for paths of the first tokens.

All of this is hindsight: which choice is best depends on tokens that the router cannot see, so even a perfect router
has some regret. Compare it with the mean change of other choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mom.analysis.samples import Batch, Context, run_batch
from mom.metrics.regret import TOLERANCE, BestPath, Swap
from mom.model import MoMForCausalLM

PASS_TOKENS = 4096
"""Tokens in a forward pass over variants of a window."""

Place = tuple[str, int]
"""A pool and a round, counted over all stages."""
Path = dict[Place, int]
"""First choices of a token."""


class _Token(NamedTuple):
    """A sampled token: its window (a batch of one), the window's choices [1, T, R, K], and its position."""

    window: Batch
    choices: dict[str, Tensor]
    position: int


def measure_regret(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    budget: int,
    max_paths: int,
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
    on_progress: Callable[[int], object] = lambda tokens: None,
) -> tuple[list[Swap], list[BestPath]]:
    """Measure swaps and best paths of sampled tokens.

    Args:
        model: a model with stages, in evaluation mode.
        batches: the windows to sample from.
        budget: tokens to run through the model; the last sampled token may exceed it. Tokens are sampled among those
            with a loss that they can change.
        max_paths: maximum number of paths to try in one search; 0 disables the search.
        seed: seed of the sample.
        context: entered around each forward pass, for autocast.
        on_progress: called after each forward pass with the number of its tokens.

    Returns:
        A swap for each token, pool, and round with another choice, and a path for each search.
    """
    spent = 0
    budgets = (budget // 2, budget - budget // 2) if max_paths else (budget, 0)
    spent_on_swaps = spent_on_paths = 0

    def spend(tokens: int) -> None:
        nonlocal spent
        spent += tokens
        on_progress(tokens)

    swaps: list[Swap] = []
    paths: list[BestPath] = []
    skips = {layout.name: layout.num_modules for layout in model.config.pools()}
    for token in _sample(model, batches, seed, context):
        before, own = spent, _own_path(token)
        places = _alternatives(model, token, own)

        def losses(variants: list[Path], token: _Token = token) -> list[float]:
            return _summed_losses(model, token, variants, context, spend)

        base = losses([{}])[0]
        tried = [{place: choice} for place, choices in places.items() for choice in choices]
        changes = {
            next(iter(path.items())): loss - base for path, loss in zip(tried, losses(tried), strict=True)
        }
        for (kind, number), choices in places.items():
            if choices:
                chosen = own[kind, number]
                found = {choice: changes[(kind, number), choice] for choice in choices}
                swaps.append(Swap(kind, number, chosen, chosen == skips[kind], found))
        spent_on_swaps += spent - before
        if spent_on_paths < budgets[1]:
            before = spent
            for kind in (*skips, None) if len(skips) > 1 else skips:
                within = {place: choices for place, choices in places.items() if kind in (None, place[0])}
                paths.append(_best_path(kind, own, within, changes, losses, base, max_paths, skips))
            spent_on_paths += spent - before
        if spent_on_swaps >= budgets[0]:
            break
    return swaps, paths


def _sample(model: MoMForCausalLM, batches: Sequence[Batch], seed: int, context: Context) -> Iterable[_Token]:
    """Draw tokens that have a loss at their own position or later, in random order, without repetition."""
    candidates = [
        (number, row, position)
        for number, batch in enumerate(batches)
        for row, labels in enumerate((batch.labels[:, 1:] >= 0).tolist())
        for position in range(len(labels) - labels[::-1].index(True) if True in labels else 0)
    ]
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randperm(len(candidates), generator=generator).tolist():
        number, row, position = candidates[index]
        window = batches[number].windows([row])
        yield _Token(window, run_batch(model, window, context=context).choices(), position)


def _own_path(token: _Token) -> Path:
    return {
        (kind, number): int(first)
        for kind, choices in token.choices.items()
        for number, first in enumerate(choices[0, token.position, :, 0].tolist())
    }


def _alternatives(model: MoMForCausalLM, token: _Token, own: Path) -> dict[Place, list[int]]:
    """Return the other choices of each place: reachable, and not among the token's K."""
    places = {}
    rounds = model.config.num_rounds
    for kind, number in own:
        router = getattr(model.model.stages[number // rounds], kind).router
        modules = router.layout.num_modules
        reachable = router.reachable[number % rounds].tolist()[: modules + 1]
        taken = token.choices[kind][0, token.position, number].tolist()
        places[kind, number] = [slot for slot, open_ in enumerate(reachable) if open_ and slot not in taken]
    return places


def _summed_losses(
    model: MoMForCausalLM,
    token: _Token,
    variants: list[Path],
    context: Context,
    spend: Callable[[int], object],
) -> list[float]:
    """Return the summed loss from the token on, for each path that replaces some of its choices."""
    length, sums = token.window.ids.shape[1], []
    size = max(1, PASS_TOKENS // length)
    for start in range(0, len(variants), size):
        part = variants[start : start + size]
        choices = {kind: given.expand(len(part), -1, -1, -1).clone() for kind, given in token.choices.items()}
        for row, path in enumerate(part):
            for (kind, number), choice in path.items():
                choices[kind][row, token.position, number, 0] = choice
        loss = run_batch(model, token.window.windows([0] * len(part)), choices, context).loss
        sums += loss[:, token.position :].double().nansum(dim=1).tolist()
        spend(len(part) * length)
    return sums


def _best_path(
    kind: str | None,
    own: Path,
    places: dict[Place, list[int]],
    changes: dict[tuple[Place, int], float],
    losses: Callable[[list[Path]], list[float]],
    base: float,
    max_paths: int,
    skips: dict[str, int],
) -> BestPath:
    """Search for the path with the smallest loss in some places."""
    complete = prod(1 + len(choices) for choices in places.values()) <= max_paths
    best, gain = {}, 0.0
    if complete:
        options = [[own[place], *choices] for place, choices in places.items()]
        tried: list[Path] = [dict(zip(places, path, strict=True)) for path in product(*options)]
        found = [base - loss for loss in losses(tried)]
        gain = max(found)
        best = tried[found.index(gain)]
    else:
        known: Any = {move: change for move, change in changes.items() if move[0] in places}
        tries = 0
        while known and tries < max_paths:
            (place, choice), change = min(known.items(), key=lambda item: item[1])
            if change >= -gain - TOLERANCE:
                break
            best, gain = {**best, place: choice}, -change
            moves = [
                (place, choice)
                for place, choices in places.items()
                for choice in (own[place], *choices)
                if choice != best.get(place, own[place])
            ]
            found = losses([{**best, place: choice} for place, choice in moves])
            tries += len(moves)
            known = {move: loss - base for move, loss in zip(moves, found, strict=True)}
    if gain <= TOLERANCE:
        best, gain = {}, 0.0
    path = {place: best.get(place, own[place]) for place in places}
    return BestPath(
        kind=kind,
        gain=gain,
        complete=complete,
        own_modules=sum(own[place] != skips[place[0]] for place in places),
        best_modules=sum(choice != skips[place[0]] for place, choice in path.items()),
        swaps=sum(path[place] != own[place] for place in places),
    )
