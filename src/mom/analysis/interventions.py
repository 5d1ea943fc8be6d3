"""Measure the similarity of modules, and the loss without them.

*Similarity* of two modules of a pool:

- ``weights``: cosine of their flattened parameters, with each norm folded into the projection after it. Modules with a
  common origin, such as copies of a layer, are near 1; modules trained separately are near 0, even if they compute the
  same with their hidden units in another order.
- ``outputs``: mean over inputs of the cosine of their updates of the residual stream. If it is near 1, one can replace
  the other.
- ``cka``: linear centered kernel alignment of the same outputs (Kornblith et al. 2019, arXiv 1905.00414, equation 4):
  1 if they differ only by a rotation and a scale. Fewer inputs than the width of the model inflate it.

The *output* of module i is the update of a step in which every token chooses only i, with weight 1; an attention module
then attends over its own keys and values. The *inputs* are the residual streams before every round of the stage on the
recorded text, the same for all modules.

*Ablation* removes modules: no round can choose them, and the routers choose among the others as if these modules did
not exist (:meth:`Router.without`). Nothing is trained. First, each module alone is removed from the complete model;
then the greedy order repeatedly removes the module with the smallest loss increase until none can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mom.analysis.samples import Batch, Context, run_batch
from mom.metrics.modules import Module, Pair, Removal
from mom.model import MoMForCausalLM
from mom.model.assembly import RoutedPool
from mom.model.pools.pool import Pool
from mom.model.routers.router import Router
from mom.model.routing import Routing

PoolKey = tuple[int, str]
"""A pool of a model: its stage and its name."""


def routed_pools(model: MoMForCausalLM) -> dict[PoolKey, RoutedPool]:
    """Return every pool of a model with its router, stage by stage, in the order of a round."""
    return {
        (index, layout.name): routed
        for index, stage in enumerate(model.model.stages)
        for layout, routed in zip(stage.layouts, stage.pools, strict=True)
    }


def list_modules(model: MoMForCausalLM) -> list[Module]:
    """Return every module of a model, stage by stage, pools in the order of a round."""
    return [
        Module(stage, name, number)
        for (stage, name), routed in routed_pools(model).items()
        for number in range(routed.layout.num_modules)
    ]


@contextmanager
def without(model: MoMForCausalLM, removed: Collection[Module]) -> Iterator[None]:
    """Remove modules from the model within the context; raise ``ValueError`` if too few choices remain for a round."""
    with ExitStack() as stack:
        for router, indices in _by_router(model, removed):
            stack.enter_context(router.without(indices))
        yield


def can_spare(model: MoMForCausalLM, removed: Collection[Module]) -> bool:
    """Return whether every round has enough choices without these modules."""
    return all(router.can_spare(indices) for router, indices in _by_router(model, removed))


def measure_removal(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    *,
    greedy: bool = True,
    context: Context = torch.no_grad,
    on_progress: Callable[[int], object] = lambda passes: None,
) -> Removal:
    """Measure the loss without each module, and along the greedy order.

    This takes a pass over the batches for each module and, if greedy, for each remaining module in every step.

    Args:
        model: a model with stages, in evaluation mode.
        batches: batches on the model's device.
        greedy: also measure the greedy order.
        context: entered around each forward pass, for autocast.
        on_progress: called with 1 after each pass over the batches.
    """

    def loss_without(removed: Collection[Module]) -> float:
        with without(model, removed):
            loss = mean_loss(model, batches, context)
        on_progress(1)
        return loss

    complete = loss_without([])
    candidates = [module for module in list_modules(model) if can_spare(model, [module])]
    alone = {module: loss_without([module]) for module in candidates}
    order: list[tuple[Module, float]] = []
    while greedy:
        removed = [module for module, _ in order]
        left = [
            module for module in candidates if module not in removed and can_spare(model, [*removed, module])
        ]
        if not left:
            break
        losses = {module: loss_without([*removed, module]) for module in left} if removed else alone
        best = min(losses, key=losses.__getitem__)
        order.append((best, losses[best]))
    return Removal(complete, alone, order, sum(batch.num_predicted for batch in batches))


def num_passes(model: MoMForCausalLM, *, greedy: bool = True) -> int:
    """Return the maximum number of passes that :func:`measure_removal` makes over its batches."""
    count = sum(can_spare(model, [module]) for module in list_modules(model))
    return 1 + count + (count * (count - 1) // 2 if greedy else 0)


@torch.inference_mode()
def mean_loss(model: MoMForCausalLM, batches: Sequence[Batch], context: Context = torch.no_grad) -> float:
    """Return the mean cross-entropy of the next token over all batches, in nats."""
    losses = [run_batch(model, batch, context=context).loss.double().nansum() for batch in batches]
    return float(sum(losses)) / sum(batch.num_predicted for batch in batches)


@torch.no_grad()
def weight_similarity(pool: Pool) -> Tensor:
    """Return the cosines between the modules' weights, [N, N], on the CPU."""
    folded = pool(2**62)  # with this many rows, norms are folded into the weights
    parts = (folded.in_weight, folded.in_bias, folded.out_weight, folded.out_bias)
    normal = F.normalize(torch.cat([part.flatten(1).float() for part in parts], dim=1), dim=1)
    return (normal @ normal.T).cpu()


def output_similarity(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean cosine and linear CKA between modules, [N, N] each, from outputs on the same inputs, [N, M, D]."""
    outputs = outputs.double()
    normal = F.normalize(outputs, dim=-1)
    cosine = torch.einsum("imd,jmd->ij", normal, normal) / outputs.shape[1]
    centered = outputs - outputs.mean(dim=1, keepdim=True)
    # Flattened Gram matrices of the inputs: their inner products are ‖XᵀY‖² for centered X and Y.
    grams = torch.stack([rows @ rows.T for rows in centered]).flatten(1)  # (N, M²)
    inner = grams @ grams.T
    norm = inner.diagonal().sqrt()
    return cosine, inner / (norm[:, None] * norm[None]).clamp_min(torch.finfo(inner.dtype).tiny)


@torch.inference_mode()
def module_outputs(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    num_inputs: int,
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
) -> dict[PoolKey, Tensor]:
    """Return each module's output (see above) for a sample of tokens.

    Args:
        model: a model with stages, in evaluation mode.
        batches: batches on the model's device.
        num_inputs: maximum number of tokens to sample per pool, over all rounds and batches.
        seed: seed of the sample.
        context: entered around each forward pass, for autocast.

    Returns:
        By stage and pool: [N, M, D], float32 on the CPU, with the same M inputs for every module.
    """
    outputs: dict[PoolKey, list[Tensor]] = {}
    steps = max(1, len(batches) * model.config.num_rounds)
    per_step = max(1, num_inputs // steps)
    generator = torch.Generator().manual_seed(seed)
    samples = [
        torch.randperm(batch.ids.numel(), generator=generator)[:per_step]
        for batch in batches
        for _ in range(model.config.num_rounds)
    ]

    def hook_for(key: PoolKey) -> Callable[..., None]:
        kept = outputs.setdefault(key, [])

        def hook(routed: Any, arguments: tuple[Any, ...], result: Any) -> None:
            x, routing, *rest = arguments
            sample = samples[len(kept)].to(x.device)
            alone = [
                routed.forward(x, _choose_only(routing, index), *rest)
                for index in range(routed.layout.num_modules)
            ]
            kept.append(torch.stack([update.flatten(0, 1)[sample] for update in alone]).float().cpu())

        return hook

    handles = [routed.register_forward_hook(hook_for(key)) for key, routed in routed_pools(model).items()]
    try:
        for batch in batches:
            run_batch(model, batch, context=context)
    finally:
        for handle in handles:
            handle.remove()
    return {key: torch.cat(kept, dim=1) for key, kept in outputs.items()}


def measure_similarity(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    num_inputs: int,
    *,
    seed: int = 0,
    context: Context = torch.no_grad,
) -> list[Pair]:
    """Compare every two modules of every pool; the arguments are those of :func:`module_outputs`."""
    pairs = []
    pools = routed_pools(model)
    for (stage, name), outputs in module_outputs(
        model, batches, num_inputs, seed=seed, context=context
    ).items():
        weights = weight_similarity(pools[stage, name].pool)
        cosine, cka = output_similarity(outputs)
        pairs += [
            Pair(
                Module(stage, name, first),
                Module(stage, name, second),
                *(float(table[first, second]) for table in (weights, cosine, cka)),
            )
            for first in range(len(weights))
            for second in range(first + 1, len(weights))
        ]
    return pairs


def _choose_only(routing: Routing, index: int) -> Routing:
    """Return a record in which every token chooses only module ``index``, with weight 1."""
    selected = torch.full_like(routing.selected[..., :1], index)
    return routing._replace(selected=selected, weights=torch.ones_like(routing.weights[..., :1]))


def _by_router(model: MoMForCausalLM, removed: Collection[Module]) -> list[tuple[Router, list[int]]]:
    """Group modules by their router."""
    grouped = [
        (routed.router, [module.number for module in removed if (module.stage, module.kind) == key])
        for key, routed in routed_pools(model).items()
    ]
    return [(router, indices) for router, indices in grouped if indices]
