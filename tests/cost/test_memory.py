"""Measured memory, compared with the bytes of the tensors that must exist."""

from __future__ import annotations

from mom.cost.memory import measure_memory
from mom.training.optimizer import build_optimizer
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import OPTIMIZER


def test_memory_of_a_forward_and_of_a_training_step():
    fields = small_config(d_model=32).to_dict()
    request = (fields, (2, 16), "32-true", "cpu", False, build_optimizer, OPTIMIZER)
    forward = measure_memory(*request, "forward")["memory/forward"]
    training = measure_memory(*request, "training")
    model = small_model(d_model=32)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    parameters = sum(tensor.nbytes for tensor in model.parameters())
    logits = model(input_ids=tokens(2, 16)).logits.nbytes
    assert forward > weights + logits
    assert training["memory/parameters"] == weights
    assert 2 * parameters <= training["memory/optimizer"] < 2.01 * parameters + 1000
    assert training["memory/working"] > parameters  # at least the gradients
    parts = ("parameters", "optimizer", "working")
    assert training["memory/training"] == sum(training[f"memory/{part}"] for part in parts)
    kept = measure_memory(fields, (2, 16), "32-true", "cpu", True, build_optimizer, OPTIMIZER, "training")
    assert kept["memory/working"] < training["memory/working"]
