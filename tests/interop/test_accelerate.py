"""Loading with accelerate and in shards."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model, infer_auto_device_map, init_empty_weights

from mom.model import MoMForCausalLM, MoMForSequenceClassification
from tests.helpers.models import small_model, tokens

blocks = pytest.mark.parametrize("block", ["gpt2", "llama"])


@blocks
def test_a_model_saved_in_shards_is_the_same(block, tmp_path):
    model, ids = small_model(block=block), tokens(2, 6)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 2
    assert torch.equal(
        MoMForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits, model(input_ids=ids).logits
    )
    body = MoMForSequenceClassification.from_pretrained(tmp_path).model
    for name, weight in body.state_dict().items():
        assert torch.equal(weight, model.model.state_dict()[name])


@blocks
def test_a_device_map_splits_neither_blocks_nor_stages(block):
    with init_empty_weights():
        model = MoMForCausalLM(small_model(block=block).config)
    size = sum(weight.numel() * 4 for weight in model.model.stages[0].parameters())
    devices = infer_auto_device_map(
        model, {0: int(1.3 * size), "cpu": 10**9}, no_split_module_classes=list(model._no_split_modules)
    )
    assert len(set(devices.values())) == 2
    assert not any(".anchor" in name or ".pool" in name or ".ffn" in name for name in devices)


@blocks
def test_weights_offloaded_to_the_cpu_or_to_disk_give_the_same(block, tmp_path):
    ids = tokens(2, 6)
    expected = small_model(block=block)(input_ids=ids).logits
    offloaded = cpu_offload(small_model(block=block), execution_device=torch.device("cpu"))
    assert torch.equal(offloaded(input_ids=ids).logits, expected)
    model = small_model(block=block)
    devices = {"model.embedding": "cpu", "model.bottom": "cpu", "model.stages": "disk", "model.top": "disk"}
    devices |= {"model.norm": "cpu", "model.steps": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path)
    assert torch.equal(dispatched(input_ids=ids).logits, expected)
    assert dispatched.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=60).shape == (2, 8)
