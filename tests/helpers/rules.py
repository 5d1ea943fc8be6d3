"""A model by hand for a rule that the token at hand does not tell: module i predicts token i."""

from __future__ import annotations

import torch

from mom.analysis.samples import Batch
from mom.model import MoMForCausalLM
from tests.helpers.models import small_config

NUM_RULES = 3


def rule_model(router: str = "oracle", *, skip: bool = False, wrong: bool = False) -> MoMForCausalLM:
    """Return a model whose module i writes the direction of token i, whatever the input.

    A linear router reads the rule from the position and is right, or always takes the next module if ``wrong``;
    its logit for SKIP is far below the others.
    """
    config = small_config(
        vocab_size=6,
        d_model=16,
        num_heads=2,
        d_ffn=8,
        num_bottom_blocks=0,
        num_top_blocks=0,
        anchors=False,
        num_rounds=1,
        pools={"ffn": {"num_modules": NUM_RULES, "top_k": 1, "skip": skip}},
        router=router,
        normalize_weights=True,
        temperature=1.0,
    )
    model = MoMForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding = model.model.embedding.token.weight  # (6, 16), tied to the head
        embedding.copy_(torch.eye(16)[:6])
        embedding[NUM_RULES:] *= 0  # the tokens that are read predict nothing
        pool = model.model.stages[0].ffn.pool
        pool.norm_weight.fill_(1.0)
        pool.proj_bias.copy_(20 * torch.eye(16)[:NUM_RULES])
        position = model.model.embedding.position.weight
        position.copy_(5 * torch.eye(16)[8 + torch.arange(len(position)) % NUM_RULES])
        if router == "linear":
            output = model.model.stages[0].ffn.router.output
            for rule in range(NUM_RULES):
                output.weight[(rule + wrong) % NUM_RULES, 8 + rule] = 1.0
            output.bias[NUM_RULES] = -10.0
    return model


def rule_batch(windows: int = 12, length: int = 7) -> Batch:
    """Return windows of random tokens; the rule, and so the label, follows from the position alone."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(NUM_RULES, 6, (windows, length), generator=generator)
    rule = torch.arange(length).expand(windows, length) % NUM_RULES  # (B, T)
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = rule[:, :-1]
    return Batch(ids, labels, {"ffn": rule.contiguous()})
