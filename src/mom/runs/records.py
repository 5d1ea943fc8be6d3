"""Finished runs as their folders tell of them: options, seed, state, final numbers."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mom.errors import RequestError, as_written
from mom.runs.files import read_json

OF_STAGES = (
    "router",
    *(
        f"model.{name}"
        for name in (
            "anchors",
            "num_attention_modules",
            "num_ffn_modules",
            "num_rounds",
            "top_k",
            "ffn_top_k",
            "schedule",
            "ffn_schedule",
            "skip",
            "ffn_skip",
            "skipped_kv",
            "skip_rule",
            "absorbing_skip",
            "weight_qkv",
        )
    ),
    "optimizer.router_lr_multiplier",
    "callbacks.router_prior_decay",
    "callbacks.router_noise",
    "callbacks.top_k_growth",
)
"""Options, and groups of them, that mean nothing to a plain transformer (``num_stages: 0``)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Args:
        folder: the run directory.
        options: its configuration, dotted names to values as they are written; of a plain transformer without those
            of stages.
        seed: of everything random.
        status: the content of ``status.json``.
        summary: the content of ``summary.json``.
    """

    folder: Path
    options: Mapping[str, str]
    seed: int
    status: Mapping[str, Any]
    summary: Mapping[str, Any]

    def value(self, metric: str) -> float | None:
        """A final number of a run that succeeded; None where there is none."""
        found = self.summary.get(metric)
        succeeded = self.status.get("state") == "succeeded"
        return float(found) if succeeded and isinstance(found, int | float) else None

    def why_not(self, metric: str) -> str:
        """Why the run has no such number, in a few words."""
        state = self.status.get("state", "no status")
        error = self.status.get("error")
        told = f": {' '.join(str(error['message']).split())}" if error else ""
        return f"has no {metric}" if state == "succeeded" else f"{state}{told}"


def find_runs(places: Sequence[str]) -> list[Run]:
    """The runs in folders, or in folders below them.

    Args:
        places: run directories, folders that hold some (as a sweep's), or patterns of such (``*``, ``**``).

    Raises:
        RequestError: ``runs``, if there is none in one of them.
    """
    found: dict[Path, Run] = {}
    for place in places:
        folders = [Path(one) for one in sorted(glob.glob(place, recursive=True)) if Path(one).is_dir()]
        runs = [run for folder in folders for run in _runs_below(folder)]
        if not runs:
            what = "a folder that is there" if not folders else "a folder with runs (config.yaml) in it"
            raise RequestError("runs", as_written(place), f"{what}, or a pattern of such")
        found |= {run.folder.resolve(): run for run in runs}
    return list(found.values())


def is_within(name: str, place: str) -> bool:
    """Whether an option is the one named, or inside the group named."""
    return name == place or name.startswith(f"{place}.")


def _runs_below(folder: Path) -> Iterator[Run]:
    """The run in a folder, or those in the folders below; the phases inside a run are part of it."""
    config = folder / "config.yaml"
    given = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    if isinstance(given, dict) and "task" in given:
        options = dict(_dotted(given))
        if options.get("model.num_stages") == "0":
            options = {
                name: value
                for name, value in options.items()
                if not any(is_within(name, one) for one in OF_STAGES)
            }
        yield Run(
            folder,
            options,
            int(given.get("seed", 0)),
            read_json(folder / "status.json"),
            read_json(folder / "summary.json"),
        )
        return
    for inner in sorted(folder.iterdir()):
        if inner.is_dir():
            yield from _runs_below(inner)


def _dotted(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", as_written(value)
