"""Every experiment file, run for a step at reduced size, and every job of the grids that they bring along."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mom.config import bind
from mom.config.composition import added_config_dir, composed
from mom.cost.estimate import flops_per_token
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.sweeps.study import search_space
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer, write_run
from tests.helpers.models import small_model
from tests.helpers.reduced import reduce
from tests.test_configs import CONF

STUDIES = CONF.parent / "benchmarks" / "studies"
PATHS = {
    path.relative_to(folder / "experiment").with_suffix("").as_posix(): path
    for folder in (CONF, STUDIES)
    for path in sorted((folder / "experiment").rglob("*.yaml"))
    if path.parent.name != "shared"
}
NAMES = list(PATHS)
# Experiments that are laid over another one, and one of those.
LAID_OVER = {
    "study/longer": "study/plain",
    "study/larger": "study/rounds_and_top_k",
    "study/web_text": "study/rounds_and_top_k",
}
GRIDS = {
    name: params
    for name, path in PATHS.items()
    if (params := (yaml.safe_load(path.read_text()).get("hydra") or {}).get("sweeper"))
}


def compose(name: str, *overrides: str) -> DictConfig:
    """An experiment as the command line makes it, laid over another one where it is made for that."""
    chosen = f"[{LAID_OVER[name]},{name}]" if name in LAID_OVER else name
    needed = ["init=some.ckpt"] if name == "paper/glue" else []
    added = added_config_dir(STUDIES if name.startswith("study/") else None)
    return composed(CONF, [*added, f"experiment={chosen}", *needed, *overrides])


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Phase 1 of the studies in small: a plain transformer of eight layers, with its tokenizer."""
    options = {"d_model": 16, "num_heads": 2, "max_positions": 32, "num_stages": 0, "num_bottom_blocks": 8}
    plain = small_model(vocab_size=VOCABULARY, num_top_blocks=0, d_ffn=None, **options)
    return write_run(tmp_path_factory.mktemp("phase1"), plain, small_tokenizer())


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_a_step_at_reduced_size(name: str, tmp_path: Path, start: Path) -> None:
    if name == "study/universal":  # it starts from a model of its own kind, made of one layer of phase 1
        reduced = bind(reduce(compose(name), tmp_path, start)).model_config(VOCABULARY)
        start = write_run(tmp_path / "one_layer", MoMForCausalLM(reduced), small_tokenizer())
    config = bind(reduce(compose(name), tmp_path, start, figures=name == "smoke"))
    task = importlib.import_module(f"mom.tasks.{config.task.name}")

    summary = task.run(config, RunDirectory(config.run_dir))
    assert summary
    if config.task.name == "pretrain":
        steps = 1 if config.trainer.fast_dev_run else 2
        assert (
            summary["steps"] == steps and summary["val/loss"] > 0 and summary["throughput/training_flops"] > 0
        )
    json.dumps(summary)


@pytest.mark.parametrize("name", GRIDS)
def test_every_job_of_a_grid_binds_and_builds(name: str) -> None:
    """Seeds do not matter for this: one is enough."""
    given = [f"{key}={value}" for key, value in GRIDS[name]["params"].items()]
    if name.startswith("study/search"):
        jobs = drawn(given)
    else:
        parsed = OverridesParser.create().parse_overrides(given)
        values = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [str(one.input_line)]
            for one in parsed
        ]
        jobs = list(itertools.product(*(one[:1] if one[0].startswith("seed=") else one for one in values)))

    assert jobs
    for job in jobs:
        bind(compose(name, *job)).check_buildable()


def drawn(given: list[str]) -> list[tuple[str, ...]]:
    """Some trials of a search, as it draws them."""
    drawn_from, fixed = search_space(given)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask(drawn_from) for _ in range(8)]
    return [(*fixed, *(f"{name}={value}" for name, value in trial.params.items())) for trial in trials]


def test_mixture_of_experts_has_the_operations_of_plain() -> None:
    """Steps times operations of a step, as docs/results.md says of study e."""

    def operations(name: str) -> float:
        request = bind(compose(name))
        return request.trainer.max_steps * flops_per_token(request.model_config(4096), 128).total

    assert operations("study/moe") == pytest.approx(operations("study/plain"), rel=0.01)
