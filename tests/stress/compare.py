"""Compare a run that was disturbed and gone on with to the undisturbed one, bit for bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mom.runs.directory import read_status

# Counters of how often loops were entered and of validations, which a resumed process enters anew.
_NOT_COMPARED = {"loops", "pytorch-lightning_version"}


def check_after_blow(folder: Path) -> None:
    """Check what a run says of itself after its process died: that it is not running, and not done unless it is."""
    state = read_status(folder).get("state")
    assert state in (None, "interrupted", "failed", "succeeded"), state
    if state == "succeeded":
        assert (folder / "summary.json").is_file()


def check_equal(folder: Path, reference: Path) -> None:
    """Check that two finished runs have the same files, curves, checkpoints, summaries, and states.

    Raises:
        AssertionError: naming what differs.
    """
    names = [_files(run) for run in (folder, reference)]
    assert names[0] == names[1], f"files differ: {names[0] ^ names[1]}"
    for name in sorted(names[0]):
        ours, theirs = folder / name, reference / name
        kind = ours.name
        if kind == "status.json":
            status = json.loads(ours.read_text())
            assert (status["state"], status["error"]) == ("succeeded", None), f"{name}: {status}"
        elif kind == "summary.json":
            _check_same(*(_untimed(json.loads(path.read_text())) for path in (ours, theirs)), where=name)
        elif kind == "metrics.csv":
            _check_same(_rows(ours), _rows(theirs), where=name)
        elif kind in ("last.ckpt", "best.ckpt"):
            _check_same(_checkpoint(ours), _checkpoint(theirs), where=name)
        elif ours.suffix in (".tsv", ".jsonl"):
            assert ours.read_bytes() == theirs.read_bytes(), name


def _files(run: Path) -> set[str]:
    """Return the files of a run, but for ``previous.ckpt``, which a resumed run may not have."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != "previous.ckpt")
    return {str(path.relative_to(run)) for path in paths}


def _untimed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics without those that depend on time; FLOPs and tokens do not."""
    kept = ("throughput/training_flops", "throughput/tokens")
    return {
        name: value for name, value in metrics.items() if "throughput/" not in name or name.endswith(kept)
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            _untimed({name: value for name, value in row.items() if value}) for row in csv.DictReader(file)
        ]


def _checkpoint(path: Path) -> dict[str, Any]:
    saved = torch.load(path, weights_only=True)
    saved = {name: value for name, value in saved.items() if name not in _NOT_COMPARED}
    if "results" in saved:
        saved["results"] = _untimed(saved["results"])
    # Of ModelCheckpoint, only the score: its paths hold the name of the run directory.
    saved["callbacks"] = {
        name: state["best_model_score"] if name.startswith("ModelCheckpoint") else state
        for name, state in saved["callbacks"].items()
    }
    return saved


def _check_same(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        same = torch.equal(ours, theirs) or bool((ours.isnan() & theirs.isnan()).all())
        assert same, f"{where} differs"
    elif isinstance(ours, Mapping):
        assert ours.keys() == theirs.keys(), f"{where}: {ours.keys() ^ theirs.keys()}"
        for name in ours:
            _check_same(ours[name], theirs[name], f"{where}: {name}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), f"{where}: {len(ours)} instead of {len(theirs)}"
        for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            _check_same(left, right, f"{where}[{index}]")
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), f"{where}: {ours} instead of {theirs}"
