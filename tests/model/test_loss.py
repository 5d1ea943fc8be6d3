"""The chunked loss, compared with PyTorch's loss of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.model import losses as loss_module
from mom.model.losses import chunked_cross_entropy
from tests.helpers.models import small_model, tokens


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(1, 23),
    ignored=st.sets(st.integers(0, 22)),
    chunk=st.integers(1, 24),
    scale=st.floats(0.1, 3),
)
def test_equals_cross_entropy_in_value_and_gradient(num_tokens, ignored, chunk, scale):
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 8, generator=generator).requires_grad_()
    weight = torch.randn(31, 8, generator=generator).requires_grad_()
    labels = torch.randint(31, (num_tokens,), generator=generator)
    for index in ignored - {0}:
        if index < num_tokens:
            labels[index] = -100
    expected = F.cross_entropy(hidden @ weight.t(), labels) * scale
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    before, loss_module.CHUNK_TOKENS = loss_module.CHUNK_TOKENS, chunk
    try:
        ours = chunked_cross_entropy(hidden, weight, labels) * scale
    finally:
        loss_module.CHUNK_TOKENS = before
    torch.testing.assert_close(ours, expected)
    for grad, wanted in zip(torch.autograd.grad(ours, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-4)


def test_no_label_that_counts_gives_nan_as_in_pytorch():
    labels = torch.full((3,), -100)
    assert torch.isnan(chunked_cross_entropy(torch.randn(3, 4), torch.randn(5, 4), labels))


def test_bfloat16_products_keep_a_float32_loss():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16), torch.randn(97, 16)
    labels = torch.randint(97, (64,))
    exact = F.cross_entropy(hidden.bfloat16().float() @ weight.bfloat16().float().t(), labels)
    ours = chunked_cross_entropy(hidden.bfloat16(), weight, labels)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(exact), rel=3e-3)


def test_training_without_logits_never_makes_a_tensor_of_all_logits():
    model = small_model(vocab_size=4099, max_positions=1024).train()
    ids = tokens(2, 1024, vocab_size=4099)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and 4099 in tensor.shape and 16 not in tensor.shape:
                    self.numel = max(self.numel, tensor.numel())
            return out

    with Largest() as seen:
        output = model(input_ids=ids, labels=ids, output_logits=False)
        output.loss.backward()
    assert output.logits is None
    assert 0 < seen.numel <= loss_module.CHUNK_TOKENS * 4099 < 2 * 1023 * 4099
