"""Whether modules specialize in rules, measured where the rule of each token is known.

The measures are those of Mittal, Bengio, and Lajoie 2022 (arXiv 2206.02713, section 4). ``p(r, m)`` is the joint
frequency of rule r and first choice m over the tokens that ran a module, in one round; there are as many rules as
modules, N. Every measure is an average over the rounds in which a module ran.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mom.metrics.names import SPECIALIZATION
from mom.model import Routing


class Specialization(Metric):
    """The measures of a pool over all tokens that were added, on all ranks.

    Args:
        num_rounds: rounds of all stages.
        num_modules: modules N of the pool.
    """

    full_state_update = False
    joint: Tensor

    def __init__(self, num_rounds: int, num_modules: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_rounds, num_modules, num_modules, dtype=torch.int64)
        self.add_state("joint", zeros, dist_reduce_fx="sum")

    def update(self, choices: Sequence[Routing], rules: Tensor, mask: Tensor) -> None:
        """Add tokens.

        Args:
            choices: the pool's records of all rounds.
            rules: the rule of each token, int64 [B, T]; those that are not from 0 to N - 1 are not counted.
            mask: tokens to count, boolean [B, T].
        """
        rounds, number, _ = self.joint.shape
        first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
        counted = mask & (rules >= 0) & (rules < number) & (first < number)
        cell = torch.arange(rounds, device=first.device).view(-1, 1, 1) * number**2 + rules * number + first
        # Indices and values are masked rather than selected, which would wait for the device.
        self.joint.view(-1).scatter_add_(0, cell.where(counted, 0).flatten(), counted.long().flatten())

    def compute(self) -> dict[str, float]:
        """Return the measures.

        Returns:
            ``collapse_average``: ``N/(N-1) Σ_m max(0, 1/N - p(m))``; 0 if modules are used equally, 1 if one does
            everything.
            ``collapse_worst``: ``1 - N min_m p(m)``; 0 if modules are used equally, 1 if one is never used.
            ``inverse_mutual_information``: ``1 - I(r; m) / ln N``; 0 if N equally frequent rules and the modules
            determine each other, 1 if they are independent.
            ``alignment``: mean over rules of ``p(π(r) | r)`` for the best one-to-one matching π of rules and modules;
            1 if each rule has its own module, at least 1/N. The paper's score is the distance from that, 1 minus it.
            Empty if the pool has a single module, or no round ran one.
        """
        rounds = [joint / joint.sum() for joint in self.joint.double().cpu() if joint.sum() > 0]
        if not rounds or len(rounds[0]) == 1:
            return {}
        measured = [_measure(joint) for joint in rounds]
        return {name: sum(values[name] for values in measured) / len(measured) for name in SPECIALIZATION}


def _measure(joint: Tensor) -> dict[str, float]:
    """Return the measures of ``p(r, m)``, [N, N]."""
    from scipy.optimize import linear_sum_assignment  # local because it takes a second to import

    number = len(joint)
    by_rule, by_module = joint.sum(1, keepdim=True), joint.sum(0)  # (N, 1), (N)
    information = torch.special.xlogy(joint, joint / (by_rule * by_module).clamp_min(1e-300)).sum()
    given_rule = joint / by_rule.clamp_min(1e-300)
    rules, modules = linear_sum_assignment(given_rule.numpy(), maximize=True)
    present = (by_rule > 0).sum()
    return {
        "collapse_average": number / (number - 1) * float((1 / number - by_module).clamp_min(0).sum()),
        "collapse_worst": 1 - number * float(by_module.min()),
        "inverse_mutual_information": 1 - float(information) / math.log(number),
        "alignment": float(given_rule[rules, modules].sum() / present),
    }
