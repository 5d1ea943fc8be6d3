"""Attention inside a document: each document is computed as if alone, in training, evaluation, and decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.windows import ScoringWindows, TokenWindows, check_separable, document_positions
from mom.errors import UsageError
from tests.data.test_windows import token_file
from tests.helpers.models import small_config, small_model
from tests.helpers.plugins import causal_conv
from tests.helpers.runs import small_module, tiny_request

END = 0


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_positions_count_from_the_last_end_of_text(ids: list[int]) -> None:
    expected, position = [], -1
    for token in ids:
        position = 0 if token == END else position + 1
        expected.append(position)
    assert document_positions(torch.tensor(ids), END).tolist() == expected


def test_windows_have_positions_only_with_a_separator(tmp_path: Path) -> None:
    file = token_file(tmp_path / "x.bin", 10)
    assert "position_ids" not in TokenWindows(file, 5)[0]
    assert TokenWindows(file, 5, separator=7)[1]["position_ids"].tolist() == [0, 0, 1, 2, 3]  # 6 7 8 9 0
    assert ScoringWindows(file, 5, 2, separator=END)[0]["position_ids"].tolist() == [0, 1, 2, 3, 4]


def rows() -> torch.Tensor:
    """Return windows of several documents, one that began before the window, and an empty one, [2, 16]."""
    ids = torch.randint(1, 61, (2, 16), generator=torch.Generator().manual_seed(0))
    ids[0, [0, 5, 6, 11]] = END
    ids[1, [9]] = END
    return ids


def batch_of(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    positions = torch.stack([document_positions(row, END) for row in ids])
    return {"input_ids": ids, "labels": ids, "position_ids": positions}


def documents(ids: torch.Tensor) -> list[torch.Tensor]:
    """Return each document of a window with the token that ends it, [1, length] each."""
    starts = sorted({0, *(index for index, token in enumerate(ids.tolist()) if token == END)})
    return [ids[None, start : end + 1] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{"skipped_kv": "zero"}, {"skipped_kv": "mask", "top_k": 1}, {"block": "llama"}, {"num_stages": 0}],
    ids=str,
)
def test_a_batch_computes_the_loss_and_gradient_of_its_documents_alone(changes, training) -> None:
    module = small_module(balance_coefficient=0.0, **changes).double()
    module.model.load_state_dict(small_model(balance_coefficient=0.0, **changes).double().state_dict())
    module.train(training)
    ids = rows()
    packed = module.run_model(batch_of(ids)).lm_loss
    packed.backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in ids:
        for document in documents(row):
            targets = document.shape[1] - 1
            if targets:
                # The last token is only predicted; if it is the end of the text, it begins the next document.
                logits = module.model(input_ids=document[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits[0], document[0, 1:], reduction="sum")
                total, count = total + loss, count + targets
    assert count == ids.shape[0] * (ids.shape[1] - 1)
    (total / count).backward()
    torch.testing.assert_close(packed, total / count)
    for name, parameter in module.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("skipped_kv", ["zero", "mask"])
def test_cached_decoding_of_a_document_computes_what_training_computed(skipped_kv) -> None:
    model = small_model(skipped_kv=skipped_kv, top_k=1).double()
    ids = rows()
    with torch.no_grad():
        packed = model(**batch_of(ids)).logits[0, 6:11]
        cache, decoded = None, []
        for token in ids[0, 6:11]:
            output = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            decoded.append(output.logits[0, -1])
    torch.testing.assert_close(torch.stack(decoded), packed)


def test_the_data_module_masks_in_training_and_validation_and_resumes_only_as_it_began(tmp_path) -> None:
    config = tiny_request(tmp_path, data={"document_mask": True}).data
    data = LanguageModelingDataModule(config, 0)
    data.setup()
    end = data.tokenizer.eos_token_id
    for windows in (data.train_windows, data.validation_windows):
        window = windows[0]
        assert window["position_ids"].tolist() == document_positions(window["input_ids"], end).tolist()
    state = {"sequence_length": config.sequence_length, "data": data.key, "seed": 0}
    with pytest.raises(
        UsageError, match=r"^data.document_mask must be false as in the checkpoint, got true$"
    ):
        data.check_state(state)
    data.check_state({**state, "document_mask": True})


def test_a_pool_that_streams_is_refused_by_name() -> None:
    check_separable(small_config())
    with causal_conv():
        config = small_config(pools=["attention", "causal_conv", "ffn"])
        with pytest.raises(
            UsageError, match=r"data.document_mask cannot be combined with the pool causal_conv"
        ):
            check_separable(config)
