"""`torch.compile`: a single graph, the same numbers, and no recompilation for other routing."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mom.model.routers.router import Router
from tests.helpers.models import small_model, tokens

VARIANTS = [
    {},
    {"balance_bias_rate": 0.1},
    {"router": "mlp", "skipped_kv": "mask"},
    {"router_prior": "looped", "schedule": "layerwise"},
    {"block": "llama", "qk_norm": True},
    {"capacity": 0.5, "top_k": 1, "absorbing_skip": True},
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model, ids) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(input_ids=ids, labels=ids, output_logits=False)
    output.loss.backward()
    return output.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_model_is_a_single_graph_for_every_routing(precision):
    model = small_model(num_rounds=2).train()
    counter = CompileCounterWithBackend("aot_eager")
    body = torch.compile(model.model, fullgraph=True, backend=counter)
    choices = set()
    for seed in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            routing = body(input_ids=tokens(2, 8, seed=seed), use_cache=False, output_routing=True).routing
        choices.add(tuple(routing[0].ffn.selected.flatten().tolist()))
    assert len(choices) == 3
    assert counter.frame_count == 1


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_compiled_layers_give_the_same_loss_and_gradients(changes):
    ids = tokens(2, 8)
    loss, gradients = step(small_model(**changes).train(), ids)
    model = small_model(**changes).train()
    counter = CompileCounterWithBackend("aot_eager")
    model.model.compile_layers(backend=counter)
    compiled_loss, compiled_gradients = step(model, ids)
    torch.testing.assert_close(compiled_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert model.state_dict().keys() == small_model(**changes).state_dict().keys()

    compiled = counter.frame_count
    step(model, tokens(2, 8, seed=1))
    step(model, tokens(2, 8, seed=2))
    assert counter.frame_count == compiled


def test_decoding_with_a_cache_leaves_compiled_layers_alone():
    """Each length would be compiled separately."""
    model, ids = small_model().eval(), tokens(2, 6)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    counter = CompileCounterWithBackend("aot_eager")
    model.model.compile_layers(backend=counter)
    assert torch.equal(model.generate(ids, **options), expected)
    assert counter.frame_count == 0
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert counter.frame_count > 0


@pytest.mark.parametrize("kind", ["gaussian", "gumbel"])
def test_noise_that_anneals_compiles_once(kind):
    model = small_model(num_rounds=2).train()
    counter = CompileCounterWithBackend("aot_eager")
    body = torch.compile(model.model, fullgraph=True, backend=counter)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for scale in (1.0, 0.5, 0.25):
        for router in routers:
            router.set_noise(kind, scale)
        body(input_ids=tokens(2, 8), use_cache=False)
    assert counter.frame_count == 1


def test_exploration_compiles_and_draws_anew_in_each_step():
    model = small_model(num_rounds=2, top_k=1, skip_exploration=0.5, skip_trials=0.5).train()
    counter = CompileCounterWithBackend("aot_eager")
    body = torch.compile(model.model, fullgraph=True, backend=counter)
    torch.manual_seed(0)
    closed = []
    for _ in range(2):
        step = body(input_ids=tokens(16, 8), use_cache=False, output_routing=True).routing[0].ffn
        closed.append(step.logits[..., -1].isneginf())
    assert not torch.equal(*closed)
    assert counter.frame_count == 1
