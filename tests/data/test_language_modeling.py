"""The data module in a real Trainer: batches, and exact resumption."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mom.config import DataConfig
from mom.data.language_modeling import LanguageModelingDataModule
from mom.errors import UsageError
from tests.helpers.texts import some_texts, write_jsonl

T, B = 16, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A corpus of about a dozen training batches."""
    folder = tmp_path_factory.mktemp("corpus")
    return DataConfig(
        corpus="text",
        path=str(write_jsonl(folder / "a.jsonl", some_texts(20, words=50))),
        cache_dir=str(folder / "cache"),
        tokenizer_vocab_size=300,
        validation_fraction=0.2,
        sequence_length=T,
        batch_size=B,
        max_bytes=4_600,
    )


class Recorder(pl.LightningModule):
    """Trains a single number and records every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []
        self.interrupt_at: int | None = None

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.interrupt_at == len(self.seen):
            raise KeyError("interrupted inside the step")
        self.seen.append(batch["input_ids"].tolist())
        return self.weight * batch["labels"].float().mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["input_ids"].shape[1] == T

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    config: DataConfig,
    steps: int,
    *callbacks: pl.Callback,
    ckpt_path: Path | None = None,
    model: Recorder | None = None,
    data: LanguageModelingDataModule | None = None,
    **options: object,
) -> Recorder:
    model = model or Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,  # type: ignore[arg-type]
    )
    data = data or LanguageModelingDataModule(config, seed=3)
    trainer.fit(model, data, ckpt_path=str(ckpt_path) if ckpt_path else None, weights_only=True)
    return model


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def test_data_is_ready_before_training(config: DataConfig) -> None:
    data = LanguageModelingDataModule(config, seed=0)
    with pytest.raises(RuntimeError, match="setup"):
        _ = data.tokenizer
    data.setup()
    data.setup("fit")
    assert data.vocab_size == 300
    assert data.num_train_tokens == data.prepared.train.count > data.num_validation_tokens > 0
    assert data.validation_bytes_per_token == data.prepared.validation.bytes_per_token
    assert len(data.fingerprint) == 64
    assert data.state_dict() == {}
    batches = list(data.train_dataloader())
    assert len(batches) == data.num_train_tokens // T // B >= 8
    assert all(batch[name].shape == (B, T) for batch in batches for name in ("input_ids", "labels"))
    ids = torch.cat([batch["input_ids"].flatten() for batch in data.val_dataloader()])
    assert ids.tolist() == data.prepared.validation.tokens[: len(ids)].tolist()
    assert data.num_validation_tokens - len(ids) < T


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_from_every_step_gives_the_same_batches(
    config: DataConfig, tmp_path: Path, workers: int
) -> None:
    config = dataclasses.replace(config, num_workers=workers)
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    full = fit(config, 32, every_step(tmp_path), **options).seen  # more than two epochs
    epoch = len(epoch_batches(config))
    assert 8 <= epoch < 16
    assert full[:epoch] != full[epoch : 2 * epoch]
    for step in range(1, 32) if workers == 0 else (4, epoch, epoch + 1):
        rest = fit(config, 32, ckpt_path=tmp_path / f"step={step}.ckpt", **options).seen
        assert rest == full[step:], f"resumed after step {step}"


def epoch_batches(config: DataConfig) -> list[dict[str, torch.Tensor]]:
    data = LanguageModelingDataModule(config, seed=3)
    data.setup()
    return list(data.train_dataloader())


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (3, 0), (5, 0), (6, 0), (3, 1)])
def test_epochs_cut_short(config: DataConfig, tmp_path: Path, step: int, workers: int) -> None:
    config = dataclasses.replace(config, num_workers=workers)
    full = fit(config, 8, every_step(tmp_path), limit_train_batches=3).seen
    rest = fit(config, 8, ckpt_path=tmp_path / f"step={step}.ckpt", limit_train_batches=3).seen
    assert rest == full[step:]


def test_checkpoint_made_while_validating(config: DataConfig, tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    full = fit(config, 20, Save(), val_check_interval=4).seen
    saved = sorted(int(path.stem) for path in tmp_path.iterdir())
    assert len(saved) >= 4
    for step in saved:
        assert fit(config, 20, ckpt_path=tmp_path / f"{step}.ckpt", val_check_interval=4).seen == full[step:]


def test_an_interrupted_batch_is_repeated(config: DataConfig, tmp_path: Path) -> None:
    class SaveOnError(pl.Callback):
        def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, error: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "interrupted.ckpt")

    full = fit(config, 6).seen
    model = Recorder()
    model.interrupt_at = 4
    with pytest.raises(KeyError):
        fit(config, 6, SaveOnError(), model=model)
    assert fit(config, 6, ckpt_path=tmp_path / "interrupted.ckpt").seen == full[4:]


def test_state_counts_batches_trained_on_not_fetched(config: DataConfig, tmp_path: Path) -> None:
    fit(dataclasses.replace(config, num_workers=1), 2, every_step(tmp_path))
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["LanguageModelingDataModule"]
    assert (state["epoch"], state["steps"], state["samples_consumed"]) == (0, 2, 2 * B)
    assert all(isinstance(value, int | str) for value in state.values())


def test_two_fits_with_one_data_module_see_the_same(config: DataConfig, tmp_path: Path) -> None:
    data = LanguageModelingDataModule(config, seed=3)
    first = fit(config, 5, every_step(tmp_path), data=data).seen
    assert fit(config, 5, data=data).seen == first
    assert fit(config, 5, data=data, ckpt_path=tmp_path / "step=3.ckpt").seen == first[3:]
    assert fit(config, 5, data=data).seen == first


@pytest.mark.parametrize(
    ("change", "seed", "option"),
    [
        ({"sequence_length": 15}, 3, "data.sequence_length must be 16 as in the checkpoint, got 15"),
        ({"validation_fraction": 0.3}, 3, "data.path=.*a.jsonl: the checkpoint was trained on other data"),
        ({}, 4, "seed must be 3 as in the checkpoint, got 4"),
    ],
)
def test_other_data_is_rejected(
    config: DataConfig, tmp_path: Path, change: dict[str, object], seed: int, option: str
) -> None:
    fit(config, 2, every_step(tmp_path))
    other = LanguageModelingDataModule(dataclasses.replace(config, **change), seed=seed)
    with pytest.raises(UsageError, match=option):
        fit(config, 4, data=other, ckpt_path=tmp_path / "step=2.ckpt")


class Ranks(LanguageModelingDataModule):
    """A process of several."""

    def __init__(self, config: DataConfig, rank: int, world_size: int) -> None:
        super().__init__(config, seed=3)
        self.ranks = (rank, world_size)
        self.setup()

    _ranks = property(lambda self: getattr(self, "ranks", (0, 1)))


def test_both_splits_are_divided_among_the_ranks(config: DataConfig) -> None:
    def windows(loader: object) -> list[list[tuple[int, ...]]]:
        return [[tuple(row) for row in batch["input_ids"].tolist()] for batch in loader]

    alone = Ranks(config, 0, 1)
    pair = [Ranks(dataclasses.replace(config, batch_size=B // 2), rank, 2) for rank in range(2)]
    first, second = (windows(data.train_dataloader()) for data in pair)
    assert [set(a + b) for a, b in zip(first, second, strict=True)] == [
        set(batch) for batch in windows(alone.train_dataloader())
    ]
    validation = [window for batch in windows(alone.val_dataloader()) for window in batch]
    shares = [[window for batch in windows(data.val_dataloader()) for window in batch] for data in pair]
    even = len(validation) // 2 * 2
    assert shares == [validation[0:even:2], validation[1:even:2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sequence_length": 100_000},
            r"data\.path=.* has only \d+ tokens for training; .*sequence_length=100000",
        ),
        ({"sequence_length": 1_500}, r"data\.path=.* has only \d+ tokens for (training|validation)"),
        (
            {"batch_size": 500},
            r"data\.batch_size=500 on 1 process needs 500 training windows, but the data has \d+",
        ),
    ],
)
def test_corpus_too_small(config: DataConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LanguageModelingDataModule(dataclasses.replace(config, **change), seed=0).setup()


def test_windows_are_pickled_without_their_tokens(config: DataConfig) -> None:
    data = LanguageModelingDataModule(config, seed=0)
    data.setup()
    windows = data.train_windows
    first = windows[0]["input_ids"]
    assert len(pickle.dumps(windows)) < 2_000
    assert torch.equal(pickle.loads(pickle.dumps(windows))[0]["input_ids"], first)
