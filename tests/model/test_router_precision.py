"""Routers decide in float32, whatever precision surrounds them: autocast, a half-precision model, or FSDP's policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mom.model import MoMForCausalLM
from mom.model.registry import routers
from mom.model.routers import RouterKind
from mom.model.routers.router import Router
from tests.helpers.models import small_config, small_model, tokens

LEARNED = sorted(name for name, kind in routers.items() if kind.learns)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"router_prior": "looped", "router_prior_strength": 0.1},
    {"balance_bias_rate": 0.1},
    {"score_function": "identity", "normalize_weights": False},
]


@dataclass(frozen=True, kw_only=True)
class Cosine(RouterKind):
    """A user's router, which reads its weights in its own way and knows nothing of precision."""

    def layers(self, options: Any, layout: Any) -> dict[str, Any]:
        return {"memory": nn.Embedding(layout.num_slots, options.d_model)}

    def score(self, router: Any, x: Tensor, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        weight = F.normalize(router.memory.weight, dim=-1)
        return F.normalize(x, dim=-1) @ weight.T, None


@pytest.fixture(autouse=True)
def fresh():
    """Register the user's router, and let nothing of a compilation reach other tests."""
    Cosine.name, routers["cosine"] = "cosine", Cosine
    torch._dynamo.reset()
    yield
    del routers["cosine"]
    torch._dynamo.reset()


def router_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Router:
    """Return the router of the first pool, its weights rounded to ``dtype`` but stored in float32."""
    router = small_model(d_model=64, router_dim=32, **changes).model.stages[0].attention.router
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(parameter.to(dtype))
    return router


def decide(router: Any, x: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """Return the records of two rounds, the last state, and the gradients of x and of the router's weights."""
    x = x.detach().requires_grad_()
    records, state = [], None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for round_index in range(2):
            routing, state = router(x, state, round_index, embedded=x.detach().flip(1))
            records += [*routing]
    chosen = [record for record in records if record.dtype == torch.float32]
    sum((record.nan_to_num(neginf=0.0).square().mean() for record in chosen), torch.zeros(())).backward()
    gradients = [x.grad.float(), *(parameter.grad.float() for parameter in router.parameters())]
    router.zero_grad()
    values = [record.detach() for record in records] + ([] if state is None else [state.detach()])
    return [*values, *(gradient / gradient.abs().max() for gradient in gradients)]


def assert_same(ours: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(ours) == len(expected)
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right, **(tolerance or {"atol": 0.0, "rtol": 0.0}))


def stream(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a residual stream, [4, 200, 64]."""
    return torch.randn(4, 200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [*LEARNED, "cosine"])
def test_autocast_changes_neither_choices_nor_gradients(kind, options):
    router, x = router_of(router=kind, **options), stream()
    expected = decide(router, x)
    assert_same(decide(router, x, autocast=True), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*LEARNED, "cosine"])
def test_a_cast_model_decides_in_float32_on_its_rounded_weights(kind, dtype):
    options = {"router": kind, "router_prior": "looped", "router_prior_strength": 0.1, "temperature": 0.2}
    x = stream(dtype)
    expected = decide(router_of(dtype, **options), x.float())
    router = router_of(**options).to(dtype)
    assert all(parameter.dtype == dtype for parameter in router.parameters())
    ours = decide(router, x)
    count = len(expected) - 1 - len(list(router.parameters()))
    assert_same(ours[:count], expected[:count])
    assert_same(ours[count:], expected[count:], atol=2e-2, rtol=2e-2)  # gradients have the weights' dtype


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.bfloat16 if kind == "linear" else torch.float32) for kind in (*LEARNED, "cosine")],
)
def test_compiled_rounds_equal_eager_ones_under_autocast(kind, dtype):
    """Compiled code must not carry autocast into the backward pass, which eager code does not either."""
    results, counter = [], CompileCounterWithBackend("aot_eager")
    for compiled in (False, True):
        options = {"router_prior": "looped", "balance_bias_rate": 0.1, "num_attention_modules": 2}
        options |= {"num_bottom_blocks": 0, "num_top_blocks": 0, "anchors": False, "num_ffn_modules": 2}
        model = small_model(router=kind, num_rounds=2, **options).to(dtype)
        if compiled:
            model.model.compile_layers(backend=counter)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=tokens(2, 16), labels=tokens(2, 16), output_routing=True)
        output.loss.backward()
        routers_of = [module for module in model.modules() if isinstance(module, Router)]
        gradients = [parameter.grad for router in routers_of for parameter in router.parameters()]
        results.append([tensor for step in output.routing for pool in step for tensor in pool] + gradients)
    for eager, compiled in zip(*results, strict=True):
        rounding = 1e-2 if compiled.dtype == torch.bfloat16 else 1e-5
        largest = float(eager.float().nan_to_num(neginf=0.0).abs().max())
        torch.testing.assert_close(compiled, eager, atol=rounding * largest, rtol=0.0)
    assert counter.frame_count > 0


def test_the_whole_model_routes_in_float32_under_autocast():
    """Each router's choice is compared with its own on the stream that it read, which differs under autocast."""
    model, ids = small_model(router="gru", balance_bias_rate=0.1), tokens(4, 32)
    read: list[tuple[Router, tuple[Any, ...], Any]] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda *call: read.append(call))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
    assert len(read) == 8
    calls = read.copy()
    for router, given, (routing, state) in calls:
        again, next_state = router(*given)
        assert_same([*routing, state], [*again, next_state])


def test_the_balance_bias_stays_in_float32(tmp_path):
    """A bias moves in small steps, which bfloat16 would round away."""
    model = small_model(balance_bias_rate=1e-3)
    bias = model.model.stages[0].ffn.router.balance_bias
    bias.copy_(torch.tensor([1.001, 0.5003, -1.0007, 0.0]))
    expected = bias.clone()
    model.save_pretrained(tmp_path)
    for cast in (
        model.to(torch.bfloat16),
        model.half(),
        MoMForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
    ):
        router = cast.model.stages[0].ffn.router
        assert cast.lm_head.weight.dtype != torch.float32
        assert router.balance_bias.dtype == router.noise_scale.dtype == torch.float32
        assert torch.equal(router.balance_bias, expected)
        router.set_temperature(0.3)
        assert router.temperature.dtype == torch.float32
        router.set_temperature(None)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_lightnings_true_half_precision_routes_in_float32(precision):
    plugin, x = HalfPrecision(precision), stream()
    changes = {"router_prior": "looped", "router_prior_strength": 0.1, "balance_bias_rate": 0.1}
    with plugin.module_init_context():
        model = plugin.convert_module(MoMForCausalLM(small_config(d_model=64, **changes)))
    router = model.model.stages[0].attention.router
    assert router.output.weight.dtype != torch.float32
    assert router.balance_bias.dtype == router.noise_scale.dtype == torch.float32
    exact = Router(router.config, router.layout, router.salt).float()
    exact.load_state_dict({name: tensor.float() for name, tensor in router.state_dict().items()})
    with plugin.forward_context():
        ours = router(plugin.convert_input(x), None, 1)
    expected = exact(x.to(router.output.weight.dtype).float(), None, 1)
    assert_same([*ours[0], ours[1]], [*expected[0], expected[1]])


def test_fsdps_mixed_precision_routes_in_float32(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        router = router_of(router_prior="looped", router_prior_strength=0.1, balance_bias_rate=0.1)
        exact = router_of(
            torch.bfloat16, router_prior="looped", router_prior_strength=0.1, balance_bias_rate=0.1
        )
        with torch.no_grad():
            expected = exact(stream(torch.bfloat16).float(), None, 1)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        fully_shard(router, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
        ours = router(stream(), None, 1)
        ours[0].weights.sum().backward()
        assert router.output.weight.grad.full_tensor().abs().max() > 0
        assert_same([*ours[0], ours[1]], [*expected[0], expected[1]])
    finally:
        dist.destroy_process_group()
