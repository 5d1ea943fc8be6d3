"""Two processes over gloo: equal to one process, differing requests, a rank that dies, and resuming."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.resumable import ResumableSampler
from mom.runs.directory import RunDirectory
from mom.tasks import pretrain
from tests.distributed.launch import launch, launch_all
from tests.distributed.scenarios import EQUAL, RESUMED, STEPS, is_timed, request, train, two_phases
from tests.helpers.texts import some_texts, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Run the scenario ``equal`` on two ranks in a folder."""
    folder = tmp_path_factory.mktemp("ranks")
    write_jsonl(folder / "texts.jsonl", some_texts(40))
    launch_all("equal", folder)
    return folder


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def last(directory: Path) -> dict:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_train_as_one_with_twice_the_batch(folder, name):
    train(request(folder, 1, **EQUAL[name]), folder / f"one-{name}")
    one, two = rows(folder / f"one-{name}"), rows(folder / f"two-{name}")
    assert len(one) == len(two) > 4
    compared = [key for key in sorted(set().union(*one)) if not is_timed(key)]
    assert "train/balance_loss" in compared and "val/loss" in compared
    for left, right in zip(one, two, strict=True):
        for key in compared:
            if key in left or key in right:
                if key == "train/balance_loss" and name not in ("balance", "accumulation"):
                    continue  # measured on one rank's tokens, so the mean over ranks differs
                if key in ("train/loss", "train/routing_loss") and name not in ("balance", "accumulation"):
                    continue
                assert float(right[key]) == pytest.approx(float(left[key]), rel=1e-4, abs=1e-5), key
    ours, theirs = last(folder / f"one-{name}")["state_dict"], last(folder / f"two-{name}")["state_dict"]
    exact = name not in ("plainly", "checkpointing", "starved")
    for key, weight in ours.items():
        difference = float((weight - theirs[key]).abs().max())
        assert difference < (1e-5 if exact else 1e-3), key


def test_two_ranks_draw_their_tokens_together(folder):
    drawn = {path.name for path in (folder / "two-checkpointing" / "figures").iterdir()}
    assert {"module_use.png", "use_over_time.png", "loss.png", "training.png"} <= drawn
    one, two = (last(folder / f"{ranks}-checkpointing")["callbacks"] for ranks in ("one", "two"))
    for name, value in one["RoutingStatistics"].items():
        assert torch.equal(value, two["RoutingStatistics"][name]), name


def test_ranks_with_different_requests_do_not_start(folder):
    for rank in range(2):
        message = (folder / f"error-{rank}.txt").read_text()
        assert message == "optimizer.lr must be the same on every rank, got 0.01 on rank 0, 0.001 on rank 1"
    assert not (folder / "differing" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("data", "data.path=texts.jsonl"),
        ("checkpoint", "last.ckpt"),
        ("split", "the validation rows of data.path=RTE"),
    ],
)
def test_ranks_with_other_files_do_not_start(folder, name, file):
    """Each node may have its own copy of a file, and one may be old."""
    for rank in range(2):
        message = (folder / f"other-{name}-{rank}.txt").read_text()
        start = re.escape(f"the content of {file} must be the same on every rank, got ")
        assert re.fullmatch(rf'{start}"\w{{16}}" on rank 0, "\w{{16}}" on rank 1', message)


def test_divergence_on_one_rank_stops_both_and_is_named_on_both(folder):
    for rank in range(2):
        error = (folder / f"divergence-{rank}.txt").read_text()
        assert error.startswith(
            "step 2: the loss is not finite; rank 1: first in the output of model.model.norm;"
        )


def test_a_rank_that_dies_ends_the_job_and_resuming_is_exact(folder):
    survivor, killed = launch("dying", folder)
    assert killed.code == -9
    assert survivor.code > 0, survivor.output
    assert "Error" in survivor.output
    directory = folder / "killed"
    assert last(directory)["global_step"] < 5
    launch_all("resumed", folder)

    reference, again = last(folder / "reference"), last(directory)
    assert again["global_step"] == 6
    assert_same(again["state_dict"], reference["state_dict"])
    assert_same(again["optimizer_states"], reference["optimizer_states"])
    assert_same(again["lr_schedulers"], reference["lr_schedulers"])
    assert_same(again["callbacks"]["RandomState"], reference["callbacks"]["RandomState"])
    kept = [{k: v for k, v in row.items() if not is_timed(k)} for row in rows(directory)]
    assert kept == [{k: v for k, v in row.items() if not is_timed(k)} for row in rows(folder / "reference")]


def test_ranks_drop_out_different_positions(folder):
    first, second = last(folder / "reference")["callbacks"]["RandomState"]["ranks"]
    assert not torch.equal(first["cpu"], second["cpu"])


def test_another_number_of_ranks_resumes_with_the_same_data(folder):
    shutil.copytree(folder / "reference", folder / "fewer")
    longer = RESUMED | {"trainer": RESUMED["trainer"] | {"max_steps": 8}}
    seen = Seen()
    train(request(folder, 1, **longer), folder / "fewer", resume=True, extra=(seen,))
    config = request(folder, 1, **longer)
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    sampler = ResumableSampler(len(data.train_windows), 4, config.seed)
    wanted = [data.train_windows[index]["input_ids"] for index in sampler]
    assert torch.equal(torch.cat(seen.windows), torch.stack(wanted[6 * 2 * 4 : 8 * 2 * 4]))


class Seen(Callback):
    """Records the training windows."""

    def __init__(self) -> None:
        self.windows: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, *_) -> None:
        self.windows.append(batch["input_ids"].clone())


def assert_same(left, right) -> None:
    """Compare nested plain data and tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for ours, theirs in zip(left, right, strict=True):
            assert_same(ours, theirs)
    else:
        assert left == right


def test_sharded_ranks_train_as_one_and_resume_from_a_full_checkpoint(folder):
    changes = EQUAL["accumulation"] | {"optimizer": {"schedule": "constant"}}
    train(request(folder, 1, **changes), folder / "one-sharded")
    one, two = rows(folder / "one-sharded"), rows(folder / "sharded")
    losses = [[float(row["train/loss"]) for row in some if "train/loss" in row] for some in (one, two)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    ours, theirs = last(folder / "one-sharded"), last(folder / "sharded")
    for key, weight in ours["state_dict"].items():
        torch.testing.assert_close(weight, theirs["state_dict"][key], atol=1e-5, rtol=0)


def test_two_phases_sharded_train_as_on_one_rank(folder):
    two_phases(folder, "two-phases", 1)
    for phase in ("plain", "."):
        ours, theirs = last(folder / "two-phases" / phase), last(folder / "two-phases-sharded" / phase)
        assert ours["global_step"] == theirs["global_step"] == 2
        for key, weight in ours["state_dict"].items():
            torch.testing.assert_close(weight, theirs["state_dict"][key], atol=1e-5, rtol=0)


def test_a_checkpoint_of_shares_starts_one_process(folder):
    start = str(folder / "two-phases-sharded" / "checkpoints" / "last.ckpt")
    changes = {"task": {"baseline": False}, "model": {"schedule": "grouped"}, "init": start}
    config = request(folder, 1, run_dir=str(folder / "from-shares"), **changes)
    assert pretrain.run(config, RunDirectory(folder / "from-shares"))["steps"] == STEPS
