"""LoRA on the pools with PEFT: each module in the stacked weights gets its own update."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.helpers.models import small_model, tokens

WEIGHTS = [
    "attention.pool.qkv_weight",
    "attention.pool.out_weight",
    "ffn.pool.fc_weight",
    "ffn.pool.proj_weight",
]


@pytest.fixture
def offline(monkeypatch):
    """Keep PEFT from asking the Hub about the base model when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def adapted(**changes):
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=[], target_parameters=WEIGHTS, task_type="CAUSAL_LM"
    )
    model = small_model(**changes)
    torch.manual_seed(0)  # the updates are random
    return peft.get_peft_model(model, config)


def trained(model, steps: int = 3):
    ids = tokens(3, 12)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), losses


def test_it_starts_as_the_model_and_trains_nothing_but_the_updates():
    model, base, ids = adapted(), small_model(), tokens(3, 12)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)

    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * len(WEIGHTS) and all(".pool." in name for name in trainable)
    model, losses = trained(model)
    assert losses[-1] < losses[0] - 0.05
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (name in trainable), (
            name
        )


def test_merged_it_is_the_base_plus_an_update_of_low_rank_for_each_module():
    model, _ = trained(adapted())
    ids = tokens(2, 9, seed=1)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        spoken = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
        merged = model.merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.equal(merged.generate(input_ids=ids, max_new_tokens=4, do_sample=False), spoken)

    base = small_model().state_dict()
    assert merged.state_dict().keys() == base.keys()
    changed = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, base[name])}
    assert changed == {f"model.stages.0.{name}" for name in WEIGHTS}
    for name in changed:
        for update in merged.state_dict()[name] - base[name]:  # of each module, (D_in, D_out)
            assert 1 <= int(torch.linalg.matrix_rank(update, atol=1e-5)) <= 2


@pytest.mark.usefixtures("offline")
def test_it_is_saved_and_loaded(tmp_path):
    model, _ = trained(adapted())
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(small_model(), tmp_path).eval()
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_activation_checkpointing_gives_the_same_losses():
    plain, losses = trained(adapted())
    checkpointed = adapted()
    checkpointed.gradient_checkpointing_enable()
    checkpointed, again = trained(checkpointed)
    assert losses == pytest.approx(again, rel=1e-5)
    assert len(plain.state_dict()) == len(checkpointed.state_dict())


def test_the_loss_is_that_of_an_adapted_head():
    model = small_model(tie_word_embeddings=False)
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted_model, ids = peft.get_peft_model(model, config), tokens(2, 12)
    logits = adapted_model(input_ids=ids).logits
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = adapted_model(input_ids=ids, labels=ids).lm_loss
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    updates = [parameter for name, parameter in adapted_model.named_parameters() if "lora_" in name]
    for ours, theirs in zip(
        torch.autograd.grad(loss, updates), torch.autograd.grad(wanted, updates), strict=True
    ):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
