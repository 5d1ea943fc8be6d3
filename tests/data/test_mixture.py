"""Mixtures of corpora: shares, order, one tokenizer, named validation losses, and exact resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from mom.config import DataConfig, bind
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.windows import MixedWindows, TokenWindows
from mom.errors import UsageError
from mom.interop import load_model
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.tasks import prepare
from mom.training.checkpoint import read_checkpoint
from mom.training.fit import fit_phase
from tests.data.test_windows import token_file
from tests.helpers.runs import tiny_request
from tests.helpers.texts import some_texts, write_jsonl


def mixture(folder: Path, **weights: float) -> dict[str, Any]:
    """Return the ``data`` options of a mixture of three corpora."""
    names = ("first", "second", "third")
    parts = {}
    for number, name in enumerate(names):
        texts = [f"{name} {text}" for text in some_texts(20 + 20 * number, words=30)]
        parts[name] = {
            "corpus": "text",
            "path": str(write_jsonl(folder / f"{name}.jsonl", texts)),
            "weight": weights.get(name, 1.0),
        }
    return {"corpus": "mixture", "path": None, "mixture": parts}


def request(folder: Path, data: dict[str, Any], **changes: Any) -> Any:
    return tiny_request(folder, data=data, **changes)


def train(folder: Path, name: str, data: dict[str, Any], resume: Path | None = None) -> dict[str, float]:
    config = request(folder, data, trainer={"limit_val_batches": None})
    module = LanguageModelingDataModule(config.data, config.seed)
    module.setup()
    seed_everything(config.seed, verbose=False)
    model = MoMForCausalLM(config.model_config(module.vocab_size))
    point = None if resume is None else read_checkpoint(resume)
    return fit_phase(
        config, model, module, RunDirectory(folder / name), phase="mom", max_steps=6, resume=point
    )


def test_an_epoch_has_every_window_and_repeats_what_its_share_asks_for(tmp_path: Path) -> None:
    parts = [
        TokenWindows(token_file(tmp_path / str(count), count), 2) for count in (20, 8)
    ]  # 10 and 4 windows
    for weights, counts in (((1, 1), (10, 10)), ((10, 4), (10, 4)), ((1, 3), (10, 30)), ((4, 1), (16, 4))):
        mixed = MixedWindows(parts, weights)
        assert mixed.ends == [counts[0], sum(counts)]
        for index in range(len(mixed)):
            part, at = (parts[0], index) if index < counts[0] else (parts[1], index - counts[0])
            assert torch.equal(mixed[index]["input_ids"], part[at % len(part)]["input_ids"])
    with pytest.raises(IndexError):
        mixed[len(mixed)]


def test_corpora_share_a_tokenizer_and_have_names_weights_and_a_key(tmp_path: Path) -> None:
    data = LanguageModelingDataModule(request(tmp_path, mixture(tmp_path, second=2.0, third=0.0)).data, 0)
    data.setup()
    assert list(data.validation_sets) == ["first", "second", "third"] and len(data.val_dataloader()) == 3
    assert len({corpus.tokenizer.backend_tokenizer.to_str() for corpus in data.corpora.values()}) == 1
    assert len(data.train_windows.windows) == 2  # the third is only validated
    assert data.num_train_tokens == sum(data.corpora[name].train.count for name in ("first", "second"))
    other = LanguageModelingDataModule(request(tmp_path, mixture(tmp_path, second=3.0, third=0.0)).data, 0)
    other.setup()
    assert other.key != data.key and other.fingerprint != data.fingerprint
    again = LanguageModelingDataModule(request(tmp_path, mixture(tmp_path, second=2.0, third=0.0)).data, 0)
    again.setup()
    batches = [
        [batch["input_ids"].tolist() for batch in module.train_dataloader()] for module in (data, again)
    ]
    assert batches[0] == batches[1]


def test_each_validation_set_has_its_loss_and_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    data = mixture(tmp_path, second=2.0, third=0.0)
    results = train(tmp_path, "reference", data)
    again = train(tmp_path, "resumed", data, tmp_path / "reference" / "checkpoints" / "previous.ckpt")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("reference", "resumed")
    ]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert results["val/second/bits_per_byte"] < results["val/second/loss"] < results["val/second/perplexity"]
    losses = {name: value for name, value in results.items() if name.startswith("val/") and "loss" in name}
    assert losses.keys() >= {"val/loss", "val/first/loss", "val/second/loss", "val/third/loss"}
    assert losses == {name: again[name] for name in losses}
    module = LanguageModelingDataModule(request(tmp_path, data).data, 1)
    module.setup()
    model = load_model(str(tmp_path / "reference" / "checkpoints" / "last.ckpt")).eval()
    total, count = 0.0, 0
    for name, loader in zip(module.validation_sets, module.val_dataloader(), strict=True):
        sums = [
            (float(model(**batch).lm_loss.detach()) * len(batch["labels"]), len(batch["labels"]))
            for batch in loader
        ]
        loss, windows = sum(loss for loss, _ in sums), sum(size for _, size in sums)
        assert results[f"val/{name}/loss"] == pytest.approx(loss / windows, abs=1e-5)
        total, count = total + loss, count + windows
    assert results["val/loss"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corpus": "mixture"}, r"data=mixture requires data.mixture: corpora by name"),
        (
            {"mixture": {"a": {}}},
            r"data.mixture cannot be combined with data=python_stdlib; use data=mixture",
        ),
        (
            {"corpus": "mixture", "mixture": {"a": {"weight": 0}}},
            r"data.mixture must have a corpus with a weight above 0",
        ),
        (
            {"corpus": "mixture", "mixture": {"a": {"weight": -1}}},
            r"data.mixture.a.weight must be at least 0, got -1.0",
        ),
        ({"corpus": "mixture", "mixture": {"a": 3}}, r"data.mixture.a must be a group of options, got 3"),
        (
            {"corpus": "mixture", "mixture": {"a": {"weights": 1}}},
            r"unknown option data.mixture.a.weights; did you mean ",
        ),
        (
            {"corpus": "mixture", "mixture": {"depth": {}}},
            r"a name in data.mixture must be of letters, digits and _",
        ),
        (
            {"corpus": "mixture", "mixture": {"a": {"corpus": "text"}}},
            r"data.mixture.a: data=text requires data.path",
        ),
    ],
)
def test_an_invalid_mixture_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        DataConfig.from_mapping(given)


def test_a_mixture_is_not_one_corpus(tmp_path: Path) -> None:
    config = bind({"data": mixture(tmp_path), "run_dir": str(tmp_path / "run"), "task": {"name": "prepare"}})
    with pytest.raises(UsageError, match=r"^data=mixture is for task=pretrain"):
        prepare.run(config, RunDirectory(config.run_dir))
