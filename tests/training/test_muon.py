"""Muon on stacked weights, against torch.optim.Muon on each module's matrix alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mom.training.muon import Muon
from mom.training.optimizer import build_optimizer, hidden_matrices
from tests.helpers.models import small_model, tokens

OPTIONS = {"_target_": "torch.optim.Muon", "lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9, "ns_steps": 4}


def single_matrices(parameter: torch.Tensor) -> list[nn.Parameter]:
    """Return copies of a parameter's matrices, each as the weight of an ``nn.Linear``."""
    if parameter.ndim == 2:
        return [nn.Parameter(parameter.detach().clone())]
    return [nn.Parameter(matrix.detach().T.clone().contiguous()) for matrix in parameter]


@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("block", ["gpt2", "llama"])
def test_each_module_moves_as_under_pytorchs_muon_and_the_rest_as_under_adamw(block, adjust_lr_fn):
    model = small_model(block=block, top_k=1).train()
    hidden = hidden_matrices(model)
    alone = {
        name: single_matrices(parameter)
        if id(parameter) in hidden
        else [nn.Parameter(parameter.detach().clone())]
        for name, parameter in model.named_parameters()
    }
    optimizer = build_optimizer(model, OPTIONS | {"adjust_lr_fn": adjust_lr_fn, "router_lr_multiplier": 3.0})
    assert isinstance(optimizer, Muon)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    references = []
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        common = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        if id(parameter) in hidden:
            options = {"momentum": 0.9, "ns_steps": 4, "adjust_lr_fn": adjust_lr_fn}
            references.append(torch.optim.Muon(alone[name], **common, **options))
        else:
            references.append(torch.optim.AdamW(alone[name], betas=(0.9, 0.95), eps=1e-5, **common))
    for step in range(3):
        ids = tokens(2, 16, seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            gradients = (
                single_matrices(parameter.grad) if id(parameter) in hidden else [parameter.grad.clone()]
            )
            for copy, gradient in zip(alone[name], gradients, strict=True):
                copy.grad = gradient.detach()
        optimizer.step()
        optimizer.zero_grad()
        for reference in references:
            reference.step()
    for name, parameter in model.named_parameters():
        found = single_matrices(parameter) if id(parameter) in hidden else [parameter]
        for matrix, copy in zip(found, alone[name], strict=True):
            # Newton-Schulz runs in bfloat16, whose products depend on the layout in memory.
            tolerance = 2e-3 if id(parameter) in hidden else 1e-6
            torch.testing.assert_close(
                matrix, copy, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_muon_updates_the_matrices_of_blocks_and_modules_only():
    model = small_model(
        router="mlp", router_prior="ordered", pools={"attention": {"kind": "shared_kv_attention"}, "ffn": {}}
    )
    hidden = hidden_matrices(model)
    names = {name for name, parameter in model.named_parameters() if id(parameter) in hidden}
    assert {"model.bottom.0.attention.qkv.weight", "model.stages.0.ffn.pool.fc_weight"} <= names
    assert {name for name in names if ".pool." in name and not name.endswith("_weight")} == {
        name for name, _ in model.named_parameters() if name.endswith(".pool.kv.weight")
    }
    assert not [name for name in names if "embedding" in name or "router" in name or "norm" in name]
    optimizer = build_optimizer(model, OPTIONS)
    assert [(group["name"], group["muon"]) for group in optimizer.param_groups] == [
        ("matrices", True),
        ("embeddings", False),
        ("vectors", False),
        ("router_matrices", False),
        ("router_vectors", False),
    ]


def test_the_scale_of_an_update_follows_the_direction_in_which_a_module_computes():
    """``original`` scales by sqrt(D_out / D_in) above 1; a pool stores [N, D_in, D_out]."""
    stacked = nn.Parameter(torch.zeros(2, 4, 16))
    optimizer = Muon(
        [{"params": [stacked], "muon": True, "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.95),
        eps=1e-8,
        momentum=0.0,
        nesterov=False,
        ns_steps=5,
        adjust_lr_fn="original",
    )
    stacked.grad = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    singular = torch.linalg.svdvals(stacked.detach())
    assert torch.all((singular > 2 * 0.6) & (singular < 2 * 1.3))  # sqrt(16 / 4) times about 1
