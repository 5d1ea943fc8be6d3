"""What single modules are: how much they resemble each other, and what the model loses without them.

*Similarity* of two modules of one pool:

- ``weights``: cosine of their parameters as one vector, each LayerNorm folded into the projection after it (what
  the module computes, :meth:`mom.model.pool.Pool.forward`). Two modules that share an origin, such as copies of
  one layer, are near 1; modules trained apart are near 0, even those that compute the same with their hidden
  units in another order.
- ``outputs``: mean over inputs of the cosine of what the two would add to the residual stream. Near 1, one can
  stand in for the other.
- ``cka``: linear centered kernel alignment of the same outputs (Kornblith et al. 2019, arXiv 1905.00414, equation
  4): 1 when one is the other but for a rotation and a scale. Fewer inputs than the model is wide inflate it.

The *output* of module i is what a step would add were i chosen alone, with weight 1, by every token: an attention
module then attends over its own keys and values. The *inputs* are the residual streams before every round of the
stage on the text that was recorded, the same for all modules.

*Removal*: the model's loss when a module is out of reach in every round, the routers choosing among the others as
if it had never been there (:meth:`mom.model.router.Router.without`); nothing is trained. *One at a time* removes
each from the whole model; *greedily* removes the one that costs least, then of what is left again the one that
costs least, until no more can go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mom.metrics.modules import Module, Pair, Removal
from mom.metrics.routing import POOLS
from mom.model import MoMForCausalLM
from mom.model.pool import Pool
from mom.model.router import Router
from mom.model.routing import Routing

Context = Callable[[], AbstractContextManager]


def modules_of(model: MoMForCausalLM) -> list[Module]:
    """Every module of a model: stage after stage, attention before FFN."""
    return [
        Module(stage, kind, number)
        for stage, parts in enumerate(model.model.stages)
        for kind in POOLS
        for number in range(getattr(parts, kind).pool.num_modules)
    ]


@contextmanager
def without(model: MoMForCausalLM, removed: Collection[Module]) -> Iterator[None]:
    """Within the context the model has not got these modules; see the head of this file.

    Raises:
        ValueError: a round would have too few choices left.
    """
    with ExitStack() as stack:
        for router, indices in _by_router(model, removed):
            stack.enter_context(router.without(indices))
        yield


def can_spare(model: MoMForCausalLM, removed: Collection[Module]) -> bool:
    """Whether every round has enough choices without these modules."""
    return all(router.can_spare(indices) for router, indices in _by_router(model, removed))


def measure_removal(
    model: MoMForCausalLM,
    batches: Sequence[Tensor],
    *,
    greedily: bool = True,
    context: Context = torch.no_grad,
    told: Callable[[int], object] = lambda forwards: None,
) -> Removal:
    """The loss without each module, and without more and more of them.

    Costs a pass over the batches for each module, and greedily one for each module that is left in each step.

    Args:
        model: with stages, in evaluation mode.
        batches: ids, [B, T] each with T of at least 2, on the model's device.
        greedily: whether to remove more than one.
        context: entered around each forward, for autocast.
        told: called after each pass over the batches with 1.
    """

    def loss_without(removed: Collection[Module]) -> float:
        with without(model, removed):
            loss = mean_loss(model, batches, context)
        told(1)
        return loss

    whole = loss_without([])
    candidates = [module for module in modules_of(model) if can_spare(model, [module])]
    alone = {module: loss_without([module]) for module in candidates}
    order: list[tuple[Module, float]] = []
    while greedily:
        removed = [module for module, _ in order]
        left = [one for one in candidates if one not in removed and can_spare(model, [*removed, one])]
        if not left:
            break
        losses = alone if not removed else {one: loss_without([*removed, one]) for one in left}
        best = min(losses, key=losses.__getitem__)
        order.append((best, losses[best]))
    return Removal(whole, alone, order, sum(ids[:, 1:].numel() for ids in batches))


def num_passes(model: MoMForCausalLM, *, greedily: bool = True) -> int:
    """How often :func:`measure_removal` goes through its batches at most."""
    spare = [module for module in modules_of(model) if can_spare(model, [module])]
    count = len(spare)
    return 1 + count + (count * (count - 1) // 2 if greedily else 0)


@torch.inference_mode()
def mean_loss(model: MoMForCausalLM, batches: Sequence[Tensor], context: Context = torch.no_grad) -> float:
    """Mean cross-entropy of the next token over all batches, in nats."""
    total, tokens = 0.0, 0
    for ids in batches:
        with context():
            output = model(input_ids=ids, labels=ids, output_logits=False)
        count = ids[:, 1:].numel()
        total += float(output.lm_loss) * count
        tokens += count
    return total / tokens


@torch.no_grad()
def weight_similarity(pool: Pool) -> Tensor:
    """Cosines between the modules' weights, [N, N], on the CPU."""
    # Any number of rows that makes folding worth while: the LayerNorm has to be in the weights.
    folded = pool(2**62)
    parts = (folded.in_weight, folded.in_bias, folded.out_weight, folded.out_bias)
    normal = F.normalize(torch.cat([part.flatten(1).float() for part in parts], dim=1), dim=1)
    return (normal @ normal.T).cpu()


def output_similarity(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine and linear CKA between modules, [N, N] each, from their outputs on the same M inputs.

    Args:
        outputs: [N, M, D].
    """
    outputs = outputs.double()
    normal = F.normalize(outputs, dim=-1)
    cosine = torch.einsum("imd,jmd->ij", normal, normal) / outputs.shape[1]
    centered = outputs - outputs.mean(dim=1, keepdim=True)
    # Gram matrices of the inputs, flattened: their inner products are ‖XᵀY‖² for centered X and Y.
    grams = torch.stack([one @ one.T for one in centered]).flatten(1)  # (N, M²)
    inner = grams @ grams.T
    norm = inner.diagonal().sqrt()
    return cosine, inner / (norm[:, None] * norm[None]).clamp_min(torch.finfo(inner.dtype).tiny)


@torch.inference_mode()
def module_outputs(
    model: MoMForCausalLM,
    batches: Sequence[Tensor],
    rows: int,
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
) -> dict[tuple[int, str], Tensor]:
    """What each module would add to the residual stream, chosen alone with weight 1; of sampled tokens.

    Args:
        model: with stages, in evaluation mode.
        batches: ids, [B, T] each.
        rows: tokens of all rounds and batches together that are kept for a pool; fewer if there are not so many.
        seed: of the sample.
        context: entered around each forward.

    Returns:
        By stage and kind: [N, M, D], float32 on the CPU, M inputs in the same order for every module.
    """
    found: dict[tuple[int, str], list[Tensor]] = {}
    steps = max(1, len(batches) * model.config.num_rounds)
    share = max(1, rows // steps)
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        torch.randperm(ids.numel(), generator=generator)[:share]
        for ids in batches
        for _ in range(model.config.num_rounds)
    ]

    def listen(stage: int, kind: str) -> Callable[..., None]:
        kept = found.setdefault((stage, kind), [])

        def hook(part: Any, arguments: tuple[Any, ...], result: Any) -> None:
            x, routing, *rest = arguments
            picked = chosen[len(kept)].to(x.device)
            alone = [
                part.forward(x, _alone(routing, index), *rest) for index in range(part.layout.num_modules)
            ]
            kept.append(torch.stack([one.flatten(0, 1)[picked] for one in alone]).float().cpu())

        return hook

    handles = [
        getattr(parts, kind).register_forward_hook(listen(stage, kind))
        for stage, parts in enumerate(model.model.stages)
        for kind in POOLS
    ]
    try:
        for ids in batches:
            with context():
                model.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {place: torch.cat(kept, dim=1) for place, kept in found.items()}


def measure_similarity(
    model: MoMForCausalLM,
    batches: Sequence[Tensor],
    rows: int,
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
) -> list[Pair]:
    """Every two modules of every pool; the arguments are those of :func:`module_outputs`."""
    pairs = []
    for (stage, kind), outputs in module_outputs(model, batches, rows, seed=seed, context=context).items():
        weights = weight_similarity(getattr(model.model.stages[stage], kind).pool)
        cosine, cka = output_similarity(outputs)
        pairs += [
            Pair(
                Module(stage, kind, first),
                Module(stage, kind, second),
                *(float(table[first, second]) for table in (weights, cosine, cka)),
            )
            for first in range(len(weights))
            for second in range(first + 1, len(weights))
        ]
    return pairs


def _alone(routing: Routing, index: int) -> Routing:
    """A record in which every token chose one module with weight 1."""
    selected = torch.full_like(routing.selected[..., :1], index)
    return routing._replace(selected=selected, weights=torch.ones_like(routing.weights[..., :1]))


def _by_router(model: MoMForCausalLM, removed: Collection[Module]) -> list[tuple[Router, list[int]]]:
    places = sorted({(one.stage, one.kind) for one in removed})
    return [
        (
            getattr(model.model.stages[stage], kind).router,
            [one.number for one in removed if (one.stage, one.kind) == (stage, kind)],
        )
        for stage, kind in places
    ]
