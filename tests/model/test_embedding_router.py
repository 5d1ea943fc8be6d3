"""The router that reads token embeddings; test_reference.py holds its values and gradients."""

from __future__ import annotations

import torch

from tests.helpers.models import small_model, tokens


def embedding_model(**changes):
    changes = {"router": "embedding", "top_k": 1, "num_bottom_blocks": 0} | changes
    return small_model(**changes)


def test_choices_start_as_a_fixed_one_per_token_and_round():
    model, ids = embedding_model(), tokens(4, 12)
    for stage in model.model.stages:
        torch.nn.init.zeros_(stage.ffn.router.output.weight)  # the stream says nothing yet
    rounds = [decision.ffn for decision in model(ids, output_routing=True).routing]
    for decision in rounds:
        chosen = decision.selected[..., 0]
        for token in ids.unique():
            assert len(chosen[ids == token].unique()) == 1
    assert any(not torch.equal(rounds[0].selected, later.selected) for later in rounds[1:])


def test_embeddings_decide_among_modules_and_leave_the_probability_of_skip_alone():
    model, ids = embedding_model(temperature=1.0), tokens(2, 9)
    router = model.model.stages[0].ffn.router
    x, embedded = torch.randn(2, 9, 16), model.get_input_embeddings()(ids)
    bias = torch.tensor([0.0, 0.0, 0.0, -1.0])
    with torch.no_grad():
        router.output.weight.zero_()
        router.output.bias.copy_(bias)
    scores = router(x, None, 0, ids, embedded=embedded)[0].scores  # (B, T, N + 1)
    spread = scores[..., :3].amax(-1) - scores[..., :3].amin(-1)  # (B, T)
    assert float(spread.detach().mean()) > 0.1
    torch.testing.assert_close(scores[..., 3], bias.softmax(-1)[3].expand(2, 9))


def test_the_same_choices_from_ids_and_from_embeddings_and_no_gradient_into_them():
    model, ids = embedding_model(tie_word_embeddings=False), tokens(2, 9)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    by_ids = model(ids, output_routing=True)
    by_embeddings = model(inputs_embeds=embedded, output_routing=True)
    assert torch.equal(by_ids.logits, by_embeddings.logits)
    router = model.model.stages[0].ffn.router
    state = router.kind.start(router, embedded)
    assert state.requires_grad
    state.sum().backward()
    assert embedded.grad is None and router.rows.weight.grad is not None


def test_a_pool_in_order_has_nothing_to_choose_by_embeddings():
    model = embedding_model(schedule="layerwise")
    router = model.model.stages[0].ffn.router
    assert not hasattr(router, "rows")
    config = model.config
    assert router.kind.flops(config, router.layout) == 2 * config.d_model * router.layout.num_slots
    assert router.kind.state_size(config, router.layout) == 0
