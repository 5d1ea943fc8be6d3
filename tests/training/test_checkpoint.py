"""Checkpoints: written atomically, read without running code, rejected if they do not fit."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from mom.errors import UsageError
from mom.model import MoMConfig
from mom.training.checkpoint import AtomicCheckpointIO, check_architecture, read_checkpoint
from tests.helpers.models import small_config
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Write a checkpoint of a small model after one step."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = plain_trainer(folder, [], max_steps=1, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(0)], []))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


class Unwritable:
    """Fails while it is being written."""

    def __reduce__(self):
        raise OSError("no space left on device")


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(10), "bad": Unwritable()}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}


def test_a_save_after_one_that_was_killed_leaves_nothing_behind(tmp_path):
    """Renaming a file to a name that it already has leaves both names."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    os.link(path, tmp_path / "previous.ckpt")  # as a process killed before it replaces last.ckpt leaves it
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    steps = [AtomicCheckpointIO().load_checkpoint(tmp_path / f"{name}.ckpt") for name in ("last", "previous")]
    assert steps == [{"step": 2}, {"step": 1}]


class FullDisk:
    """A file on a disk with little space left."""

    def __init__(self, path: Path, free: int) -> None:
        self._file, self._free = open(path, "wb"), free  # noqa: SIM115 (closed on exit)

    def write(self, content) -> int:
        self._free -= len(memoryview(content).cast("B"))
        if self._free < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("free", [0, 10, 700, 100_000, 399_000])
def test_a_full_disk_names_the_file_and_the_bytes(tmp_path, monkeypatch, free):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    before = path.read_bytes()
    content = {"state_dict": {"a": torch.zeros(50_000)}, "optimizer_states": [{"b": [torch.zeros(50_000)]}]}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_: FullDisk(path, free))
        with pytest.raises(
            OSError, match=r"No space left on device: .*last.ckpt needs 400,000 bytes, [\d,]+ are free"
        ) as error:
            AtomicCheckpointIO().save_checkpoint(content, path)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["a"].shape == (50_000,)


def test_a_pickle_with_code_is_rejected_and_not_run(tmp_path):
    path, trap = tmp_path / "bad.ckpt", tmp_path / "sprung"
    torch.save({"state_dict": Malicious(trap)}, path)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    with pytest.raises(UsageError, match=r"ckpt"):
        read_checkpoint(path)
    assert not trap.exists()


def test_an_intact_checkpoint_is_read(trained):
    resume = read_checkpoint(trained)
    assert (resume.path, resume.step) == (trained, 1)
    config = small_config(initializer_range=0.3, use_cache=False)
    check_architecture(resume, config.to_dict())  # neither option changes the architecture


def test_a_checkpoint_from_before_an_option_existed_resumes(trained):
    resume = read_checkpoint(trained)
    del resume.model_config["block"], resume.model_config["balance_bias_rate"]
    wanted = MoMConfig.from_dict(torch.load(trained, weights_only=True)["hyper_parameters"]["model_config"])
    check_architecture(resume, wanted.to_dict())
    with pytest.raises(UsageError, match=r"block=gpt2.*block=llama"):
        check_architecture(resume, wanted.to_dict() | {"block": "llama"})


def make_missing(path: Path, trained: Path) -> None:
    pass


def make_torn(path: Path, trained: Path) -> None:
    content = trained.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_empty(path: Path, trained: Path) -> None:
    path.write_bytes(b"")


def make_text(path: Path, trained: Path) -> None:
    path.write_text("not a checkpoint\n", encoding="utf-8")


def make_folder(path: Path, trained: Path) -> None:
    path.mkdir()


def make_foreign(path: Path, trained: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "hyper_parameters": {}}, path)


def make_weights(path: Path, trained: Path) -> None:
    torch.save(torch.zeros(3), path)


def make_without_optimizer(path: Path, trained: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    "make",
    [
        make_missing,
        make_torn,
        make_empty,
        make_text,
        make_folder,
        make_foreign,
        make_weights,
        make_without_optimizer,
    ],
)
def test_what_cannot_be_resumed_is_rejected_in_one_line(make, tmp_path, trained):
    path = tmp_path / "some.ckpt"
    make(path, trained)
    with pytest.raises(UsageError) as raised:
        read_checkpoint(path)
    assert "ckpt" in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_another_architecture_is_rejected_by_name(trained):
    resume = read_checkpoint(trained)
    other = small_config(d_model=32, top_k=1).to_dict()
    with pytest.raises(UsageError, match=r"^ckpt=.*d_model=16.*top_k=2.*d_model=32.*top_k=1"):
        check_architecture(resume, other)
    with pytest.raises(UsageError, match="vocab_size=61"):
        check_architecture(resume, small_config(vocab_size=99).to_dict())
