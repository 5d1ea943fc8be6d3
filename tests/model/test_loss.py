"""The chunked loss, compared with PyTorch's loss of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mom.model import cross_entropy as loss_module
from mom.model.cross_entropy import chunked_cross_entropy
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


@pytest.mark.parametrize("vocab_size", [29, 32])
def test_a_padded_vocabulary_changes_neither_the_loss_nor_a_gradient(vocab_size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(19, 8, generator=generator).requires_grad_()
    weight = (torch.randn(vocab_size, 8, generator=generator) - 5).requires_grad_()  # logits of 0 would win
    labels = torch.randint(vocab_size, (19,), generator=generator)
    expected = F.cross_entropy(hidden @ weight.t(), labels)
    monkeypatch.setattr(loss_module, "_blocks", lambda hidden: (5, 16))  # as on a GPU
    ours = chunked_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(ours, expected)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for grad, other in zip(torch.autograd.grad(ours, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-4)


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


def cross_entropy_of_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16], ids=["mixed", "true"])
def test_float16_gradients_hold_the_scalers_first_loss_scale(weight_dtype):
    torch.manual_seed(0)
    hidden = torch.randn(4096, 16).half().requires_grad_()
    weight = (torch.randn(97, 16) / 4).to(weight_dtype).requires_grad_()
    labels = torch.randint(97, (4096,))
    exact = [tensor.detach().half().float().requires_grad_() for tensor in (hidden, weight)]
    (F.cross_entropy(exact[0] @ exact[1].t(), labels) * 65536.0).backward()
    (chunked_cross_entropy(hidden, weight, labels) * 65536.0).backward()
    for ours, wanted in zip((hidden, weight), exact, strict=True):
        assert ours.grad.dtype == ours.dtype and ours.grad.isfinite().all()
        error = (ours.grad.float() - wanted.grad).norm() / wanted.grad.norm()
        assert error < 2e-3  # float16 rounds to 2^-11


def test_small_gradients_do_not_vanish_in_float16():
    torch.manual_seed(0)
    hidden = torch.randn(20_000, 8).half().requires_grad_()
    weight = (torch.randn(31, 8) / 100).requires_grad_()
    labels = torch.randint(31, (20_000,))
    (wanted,) = torch.autograd.grad(
        F.cross_entropy(hidden.float() @ weight.half().float().t(), labels) * 65536.0, hidden
    )
    (ours,) = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels) * 65536.0, hidden)
    # Without the scale most of this gradient is below the smallest float16.
    assert (ours.float() - wanted.float()).norm() < 3e-3 * wanted.float().norm()


def test_float64_inputs_keep_a_float64_loss():
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 3).double().requires_grad_(), torch.randn(5, 3).double().requires_grad_()
    labels = torch.randint(5, (7,))
    torch.testing.assert_close(
        chunked_cross_entropy(hidden, weight, labels), F.cross_entropy(hidden @ weight.t(), labels)
    )
    assert torch.autograd.gradcheck(lambda *inputs: chunked_cross_entropy(*inputs, labels), (hidden, weight))


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matmuls, and collects the shapes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_matmuls = 0
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.num_matmuls += "mm" in str(function)
        if "empty" in str(function) or "zeros" in str(function):
            self.shapes.add(tuple(out.shape))
        return out


@pytest.mark.parametrize(
    ("hidden_learns", "weight_learns", "with_grad", "products"),
    [
        (True, True, True, 3),
        (True, False, True, 2),
        (False, True, True, 2),
        (False, False, True, 1),
        (True, True, False, 1),
    ],
    ids=["both", "frozen head", "frozen body", "all frozen", "no_grad"],
)
def test_only_gradients_that_are_wanted_are_computed(
    hidden_learns, weight_learns, with_grad, products, monkeypatch
):
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 10)
    hidden = torch.randn(37, 8, requires_grad=hidden_learns)
    weight = torch.randn(101, 8, requires_grad=weight_learns)
    labels = torch.randint(101, (37,))
    with torch.set_grad_enabled(with_grad), Operators() as operators:
        loss = chunked_cross_entropy(hidden, weight, labels)
    assert operators.num_matmuls == products * 4
    assert ((101, 8) in operators.shapes) == (weight_learns and with_grad)
    assert ((37, 8) in operators.shapes) == (hidden_learns and with_grad)
    assert loss.requires_grad == ((hidden_learns or weight_learns) and with_grad)
    if loss.requires_grad:
        loss.backward()
    assert (hidden.grad is not None) == (hidden_learns and with_grad)
    assert (weight.grad is not None) == (weight_learns and with_grad)


def scaled(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 3)


def negated(model):
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (-inputs[0],))


def banned(model):
    def ban(module, inputs, output):
        output = output.clone()
        output[:, :, 0] = -30  # as for logits, (B, T, V)
        return output

    model.lm_head.register_forward_hook(ban)


def replaced_forward(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden) / 2  # as accelerate does


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)
    with torch.no_grad():
        model.lm_head.parametrizations.weight.original0.mul_(2)


def biased(model):
    model.lm_head.bias = nn.Parameter(torch.linspace(-2, 2, model.config.vocab_size))


def subclassed(model):
    class Capped(nn.Linear):
        def forward(self, hidden):
            return 2 * torch.tanh(super().forward(hidden) / 2)

    head = Capped(model.config.d_model, model.config.vocab_size, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head


HEADS = [scaled, negated, banned, replaced_forward, parametrized, biased, subclassed]


@pytest.mark.parametrize("change", HEADS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_loss_is_that_of_the_logits_however_the_head_was_changed(change, training, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 5)
    model, ids = small_model(tie_word_embeddings=False).train(training), tokens(2, 12)
    plain = float(model(input_ids=ids, labels=ids).lm_loss.detach())
    change(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    wanted = cross_entropy_of_logits(model, ids)
    ours = model(input_ids=ids, labels=ids, output_logits=False).lm_loss
    assert float(ours.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert abs(float(ours.detach()) - plain) > 1e-3
    for ours_grad, wanted_grad in zip(
        torch.autograd.grad(ours, parameters, allow_unused=True),
        torch.autograd.grad(wanted, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours_grad is None) == (wanted_grad is None)
        if ours_grad is not None:
            torch.testing.assert_close(ours_grad, wanted_grad, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).lm_loss) == pytest.approx(float(wanted), rel=1e-5)


def test_a_changed_head_is_called_in_chunks_and_stores_no_logits():
    model = small_model(vocab_size=4099, max_positions=1024).train()
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    ids, kept = tokens(2, 1024, vocab_size=4099), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t
    ):
        loss = model(input_ids=ids, labels=ids, output_logits=False).loss
    assert sum(sizes) == 2 * 1023 and max(sizes) == loss_module.CHUNK_TOKENS
    assert not any(shape[-1:] == (4099,) for shape in kept)
    loss.backward()


def test_labels_that_do_not_count_do_not_count_for_a_changed_head():
    model, ids = small_model(), tokens(2, 12)
    scaled(model)
    labels = ids.clone()
    labels[0, :7] = -100
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        ours = model(input_ids=ids, labels=labels).lm_loss
        none = model(input_ids=ids, labels=torch.full_like(ids, -100)).lm_loss
    assert float(ours) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.isnan(none)
