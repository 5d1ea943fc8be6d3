"""Routers without some modules, compared with a model built without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mom.model import MoMConfig, MoMForCausalLM
from tests.helpers.models import small_model, tokens

POOLS = ("attention", "ffn")


def built_without(model: MoMForCausalLM, removed: dict[tuple[int, str], list[int]]) -> MoMForCausalLM:
    """Build a model without the modules, by deleting their rows, columns, and priors from the weights.

    Every stage must lose the same number of modules, since the configuration has a single number for all stages.
    """
    config = model.config
    sizes = {kind: getattr(config, f"num_{kind}_modules") for kind in POOLS}
    kept = {}
    state = dict(model.state_dict())
    for (stage, kind), numbers in removed.items():
        kept[kind] = [number for number in range(sizes[kind]) if number not in numbers]
        slots = [*kept[kind], *range(sizes[kind], sizes[kind] + config.num_skip_slots)]
        place = f"model.stages.{stage}.{kind}."
        for name in [name for name in state if name.startswith(place)]:
            if ".pool." in name:
                state[name] = state[name][kept[kind]]
            elif ".output." in name:
                state[name] = state[name][slots]
            elif name.endswith(".prior"):
                state[name] = state[name][:, slots]
            elif ".rows." in name:
                rounds = state.pop(name).unflatten(0, (config.num_rounds, sizes[kind]))  # (H, N, D)
                if len(kept[kind]) > 1:  # with a single module, embeddings have nothing to decide
                    state[name] = rounds[:, kept[kind]].flatten(0, 1)
    smaller = {f"num_{kind}_modules": len(numbers) for kind, numbers in kept.items()}
    other = MoMForCausalLM(MoMConfig.from_dict(config.to_dict() | smaller)).eval()
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1, "router": "linear"},
        {"top_k": 1, "router": "embedding"},
        {"top_k": "all", "router": "mlp"},
        {"router_prior": "looped", "router_prior_strength": 1.0},
        {"skip_rule": "first", "weight_qkv": True, "skipped_kv": "mask"},
        {"num_skip_slots": 2, "normalize_weights": False},
        {"score_function": "identity", "normalize_weights": False},
        {"num_stages": 2, "num_attention_modules": 4},
        {"top_k": 1, "ffn_top_k": "all", "absorbing_skip": True},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "default",
)
def test_a_removed_module_is_like_a_module_that_never_existed(changes: dict[str, Any]) -> None:
    model = small_model(**changes)
    ids = tokens(2, 12)
    removed = {
        (stage, kind): [1] if kind == "attention" else [0, 2]
        for stage in range(model.config.num_stages)
        for kind in POOLS
    }
    if 2 in (model.config.top_k, model.config.ffn_top_k):
        removed = {place: numbers[:1] for place, numbers in removed.items()}
    routers = {place: getattr(model.model.stages[place[0]], place[1]).router for place in removed}
    with torch.no_grad():
        before = model(input_ids=ids).logits
        expected = built_without(model, removed)(input_ids=ids).logits
        contexts = [routers[place].without(numbers) for place, numbers in removed.items()]
        for context in contexts:
            context.__enter__()
        found = model(input_ids=ids).logits
        for context in contexts:
            context.__exit__(None, None, None)
        after = model(input_ids=ids).logits

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_a_random_router_takes_the_next_in_its_order() -> None:
    model = small_model(router="random", top_k=1)
    router = model.model.stages[0].ffn.router
    ids = tokens(2, 16)

    def chosen() -> torch.Tensor:
        with torch.no_grad():
            routing = model(input_ids=ids, output_routing=True).routing
        return torch.stack([record.ffn.selected for record in routing])

    before = chosen()
    with router.without([2]):
        after = chosen()

    assert (before == 2).any() and not (after == 2).any()
    assert torch.equal(after[before != 2], before[before != 2])


@pytest.mark.parametrize(
    ("changes", "modules", "spared"),
    [
        ({"top_k": 2}, [0, 1], True),
        ({"top_k": 2}, [0, 1, 2], False),  # only SKIP would be left for two assignments
        ({"top_k": 2, "skip": False}, [0, 1], False),
        ({"top_k": 1}, [0, 1, 2], True),
        ({"top_k": 1, "skip": False}, [0, 1, 2], False),
        ({"top_k": "all"}, [0, 2], True),
        ({"top_k": 1, "schedule": "layerwise"}, [1], True),
        ({"top_k": 1, "schedule": "layerwise", "skip": False}, [1], False),
        ({"router": "sequential"}, [1], False),
        ({"router": "sequential"}, [], True),
    ],
)
def test_every_round_must_keep_enough_choices(
    changes: dict[str, Any], modules: list[int], spared: bool
) -> None:
    router = small_model(**changes).model.stages[0].attention.router

    assert router.can_spare(modules) is spared
    if spared:
        with router.without(modules):
            assert not router.reachable[:, modules].any()
    else:
        with (
            pytest.raises(
                ValueError, match=r"^cannot remove modules \[.*\] of the attention pool: every round"
            ),
            router.without(modules),
        ):
            pass
    assert router.all_reachable is (changes.get("schedule") is None and changes.get("skip", True))


def test_an_error_inside_restores_the_modules() -> None:
    router = small_model().model.stages[0].attention.router
    with pytest.raises(KeyError), router.without([1]):
        raise KeyError

    assert bool(router.reachable.all())
