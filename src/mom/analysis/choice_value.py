"""Measure the value of the routers' choices: the loss when others replace them.

A first pass records all choices. Then, pool by pool and round by round, new choices (:data:`REPLACEMENTS`) take the
place of the recorded ones, and all others stay as recorded (:mod:`mom.model.choices`). New modules get the weights that
the router gives them. If choosing matters, every replacement raises the loss; if ``token`` costs nothing, a table by
token ID would choose as well as the router.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mom.analysis.samples import Batch, Context, Recorded, run_batch
from mom.metrics.choice_value import REPLACEMENTS, ChoiceValue, mean_with_error, most_frequent
from mom.model import MoMForCausalLM

Flat = dict[str, Tensor]
"""Choices of all n tokens of a sample, by pool, [n, R, K]."""


def measure_choice_value(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
    on_progress: Callable[[int], object] = lambda passes: None,
) -> list[ChoiceValue]:
    """Measure the loss increase for each replacement, in all pools together and in each pool and round.

    Args:
        model: a model with stages, in evaluation mode.
        batches: the sample.
        seed: seed of the permutation and the random choices.
        context: entered around each forward pass, for autocast.
        on_progress: called with 1 after each pass over the batches.
    """
    records = [run_batch(model, batch, context=context) for batch in batches]
    on_progress(1)
    own = _flat([record.choices() for record in records])
    losses = _flat_losses(records)
    window = np.concatenate(
        [
            first + np.arange(len(batch.ids)).repeat(batch.ids.shape[1])
            for first, batch in zip(_starts(batches), batches, strict=True)
        ]
    )
    values = []
    for replacement in REPLACEMENTS:
        new = _replacement(replacement, model, batches, records, own, seed)
        for kind, number in _scopes(model):
            choices = _mixed(own, new, kind, number)
            measured = [
                run_batch(model, batch, given, context)
                for batch, given in zip(batches, _split(choices, batches), strict=True)
            ]
            difference = _flat_losses(measured) - losses
            known = ~np.isnan(difference)
            increase, error = mean_with_error(difference[known], window[known])
            values.append(
                ChoiceValue(kind, number, replacement, increase, error, _changed(own, choices, kind, number))
            )
            on_progress(1)
    return values


def num_value_passes(model: MoMForCausalLM) -> int:
    """Return the number of passes that :func:`measure_choice_value` makes over its batches."""
    return 1 + len(REPLACEMENTS) * len(_scopes(model))


def second_best(record: Any) -> Tensor:
    """Return the K best choices without the first, [B, T, K]; a token's own choices if there are too few."""
    slots, modules = record.logits.shape[-1], record.num_modules
    first = record.selected[..., :1]  # (B, T, 1)
    index = torch.arange(slots, device=first.device).clamp(max=modules)  # every slot from N on means SKIP
    best = record.logits.masked_fill(index == first, float("-inf")).topk(record.selected.shape[-1], dim=-1)
    enough = torch.isfinite(best.values).all(dim=-1, keepdim=True)  # (B, T, 1)
    return torch.where(enough, best.indices.clamp(max=modules), record.selected)


def _scopes(model: MoMForCausalLM) -> list[tuple[str | None, int | None]]:
    """List what is replaced at a time: everything, each pool, and each round of each pool."""
    pools = [layout.name for layout in model.config.pools()]
    rounds = range(model.config.num_stages * model.config.num_rounds)
    scopes: list[tuple[str | None, int | None]] = [(None, None)] if len(pools) > 1 else []
    return scopes + [(pool, number) for pool in pools for number in (None, *rounds)]


def _replacement(
    name: str,
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    records: Sequence[Recorded],
    own: Flat,
    seed: int,
) -> Flat:
    """Return the choices that replace those of all tokens in all rounds."""
    generator = torch.Generator().manual_seed(seed)
    if name == "permuted":  # the same permutation in every pool and round: another token's path
        order = torch.randperm(len(next(iter(own.values()))), generator=generator)
        return {pool: choices[order.to(choices.device)] for pool, choices in own.items()}
    if name == "second":
        parts = [
            {
                pool: torch.stack([second_best(getattr(step, pool)) for step in record.routing], dim=2)
                for pool in own
            }
            for record in records
        ]
        return _flat(parts)
    if name == "uniform":
        return {pool: _uniform(model, pool, choices, generator) for pool, choices in own.items()}
    group = np.concatenate(
        [
            (
                batch.ids
                if name == "token"
                else torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
            )
            .flatten()
            .cpu()
            .numpy()
            for batch in batches
        ]
    )
    return {
        pool: torch.stack(
            [torch.from_numpy(most_frequent(step.cpu().numpy(), group)) for step in choices.unbind(1)], dim=1
        ).to(choices.device)
        for pool, choices in own.items()
    }


def _uniform(model: MoMForCausalLM, pool: str, choices: Tensor, generator: torch.Generator) -> Tensor:
    """Draw K different choices among those that each round can reach, [n, R, K]."""
    config, modules = model.config, next(layout for layout in model.config.pools() if layout.name == pool)
    reachable = torch.cat(
        [getattr(stage, pool).router.reachable[: config.num_rounds] for stage in model.model.stages]
    ).cpu()  # (R, slots)
    slots = modules.num_modules + 1
    drawn = torch.rand(len(choices), len(reachable), slots, generator=generator)  # (n, R, N + 1)
    drawn = drawn.masked_fill(~reachable[:, :slots], -1.0)
    best = drawn.topk(choices.shape[-1], dim=-1)
    # Where a round reaches fewer than K choices, SKIP fills up, as in the router.
    return best.indices.masked_fill(best.values < 0, slots - 1).to(choices.device)


def _mixed(own: Flat, new: Flat, kind: str | None, number: int | None) -> Flat:
    """Return the new choices of a pool and round, and the tokens' own elsewhere."""
    mixed = {}
    for pool, choices in own.items():
        mixed[pool] = choices
        if kind in (None, pool):
            at = slice(None) if number is None else slice(number, number + 1)
            mixed[pool] = choices.clone()
            mixed[pool][:, at] = new[pool][:, at]
    return mixed


def _changed(own: Flat, choices: Flat, kind: str | None, number: int | None) -> float:
    """Return the fraction of steps within the scope whose set of choices changed."""
    at = slice(None) if number is None else slice(number, number + 1)
    parts = [
        (own[pool][:, at].sort(-1).values != choices[pool][:, at].sort(-1).values).any(-1).float().mean()
        for pool in own
        if kind in (None, pool)
    ]
    return float(torch.stack(parts).mean())


def _starts(batches: Sequence[Batch]) -> list[int]:
    """Return the number of each batch's first window."""
    sizes = [len(batch.ids) for batch in batches]
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _flat(parts: Sequence[dict[str, Tensor]]) -> Flat:
    return {pool: torch.cat([part[pool].flatten(0, 1) for part in parts]) for pool in parts[0]}


def _flat_losses(records: Sequence[Recorded]) -> Any:
    return torch.cat([record.loss.flatten() for record in records]).double().cpu().numpy()


def _split(choices: Flat, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Undo :func:`_flat`."""
    sizes = [batch.ids.numel() for batch in batches]
    parts = {pool: given.split(sizes) for pool, given in choices.items()}
    return [
        {pool: parts[pool][index].unflatten(0, batch.ids.shape) for pool in parts}
        for index, batch in enumerate(batches)
    ]
