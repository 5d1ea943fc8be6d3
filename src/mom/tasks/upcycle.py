"""Make a Mixture-of-Modules of a plain transformer and write it as a folder to start from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table

from mom.config import RunConfig, UpcycleConfig
from mom.console import print_table, standard_output
from mom.data.tokenizer import load_tokenizer
from mom.errors import RequestError
from mom.interop import UpcyclingPlan, load_model, upcycle
from mom.interop.tokenizer import find_tokenizer
from mom.interop.upcycling import StagePlan, num_layers_of_modules, num_plain_layers
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory

log = logging.getLogger(__name__)

FOLDER = "model"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Upcycle the plain model of ``init`` into the model of the request, in ``<run>/model``.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        ``parameters``, ``parameters/plain`` and ``depth/graph``.

    Raises:
        RequestError: the weights cannot be used, or the shapes or layers do not fit.
    """
    assert isinstance(config.task, UpcycleConfig) and config.init is not None
    plain = load_model(config.init)
    if plain.config.num_stages:
        raise RequestError("init", f"a model with {plain.config.num_stages} stages", "a plain transformer")
    model_config = config.model_config(plain.config.vocab_size)
    if not model_config.num_stages:
        raise RequestError("model.num_stages", 0, "at least 1, whose modules the layers become")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model_config, name, getattr(plain.config, name))
    plan = plan_of(config.task, model_config, plain.config.graph_depth)

    seed_everything(config.seed, workers=True, verbose=False)  # of the routers
    model = upcycle(plain, model_config, plan)
    _print_plan(plan or UpcyclingPlan.consecutive(model_config), config.init)
    if run.writes:
        write_folder(model, config.init, run.path / FOLDER)
        print(f"Written to {run.path / FOLDER}; train it on with init={run.path / FOLDER}", flush=True)
    return {
        "parameters": model.num_parameters(),
        "parameters/plain": plain.num_parameters(),
        "depth/graph": model_config.graph_depth,
    }


def plan_of(task: UpcycleConfig, config: MoMConfig, num_layers: int) -> UpcyclingPlan | None:
    """The plan that the task's options describe; ``None``, the plan by default, where there are none.

    Args:
        task: the options.
        config: the model to be made.
        num_layers: of the plain model.

    Raises:
        RequestError: a list of the wrong length, or a layer that is not there.
    """
    if task.layers is None and task.attention_layers is None and task.ffn_layers is None:
        return None
    plan = UpcyclingPlan.consecutive(config)
    wanted = num_plain_layers(config)
    layers = _listed(
        "layers",
        list(range(wanted)) if task.layers is None else task.layers,
        wanted,
        f"{config.num_bottom_blocks} bottom, then for each of {config.num_stages} stage(s) "
        f"{num_layers_of_modules(config)} modules"
        f"{' and an anchor' if config.anchors else ''}, then {config.num_top_blocks} top",
        num_layers,
    )

    def modules(name: str, given: list[int] | None, size: int) -> list[tuple[int, ...]]:
        """Per stage, where the modules of one pool come from."""
        if given is None:
            return [tuple(layers[i] for i in getattr(stage, name)) for stage in plan.stages]
        sources = _listed(
            f"{name}_layers", given, size * config.num_stages, f"{size} for each stage", num_layers
        )
        return [tuple(sources[start : start + size]) for start in range(0, len(sources), size)]

    attention = modules("attention", task.attention_layers, config.num_attention_modules)
    ffn = modules("ffn", task.ffn_layers, config.num_ffn_modules)
    stages = tuple(
        StagePlan(attention[index], ffn[index], None if stage.anchor is None else layers[stage.anchor])
        for index, stage in enumerate(plan.stages)
    )
    return UpcyclingPlan(tuple(layers[i] for i in plan.bottom), stages, tuple(layers[i] for i in plan.top))


def write_folder(model: MoMForCausalLM, init: str, folder: Path) -> None:
    """Write weights, configuration and, where ``init`` has one, the tokenizer; whole or not at all.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    building = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        model.save_pretrained(building)
        try:
            load_tokenizer(find_tokenizer(init, None)).save_pretrained(str(building))
        except RequestError:
            log.info("no tokenizer beside %s; data.tokenizer has to name it", init)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as reason:
        shutil.rmtree(building, ignore_errors=True)
        raise RequestError("run_dir", folder, f"a folder that can be written: {reason}") from reason


def _listed(name: str, given: list[int], length: int, of_what: str, num_layers: int) -> list[int]:
    """A list of layers, checked."""
    shown = "[" + ",".join(map(str, given)) + "]"
    if len(given) != length:
        raise RequestError(f"task.{name}", f"{shown} ({len(given)} layers)", f"{length} layers: {of_what}")
    if not all(0 <= layer < num_layers for layer in given):
        raise RequestError(f"task.{name}", shown, f"layers from 0 to {num_layers - 1}, those of init")
    return given


@rank_zero_only
def _print_plan(plan: UpcyclingPlan, init: str) -> None:
    table = Table(title=f"Layers of {init}", title_justify="left", show_header=False)
    for where, layers in plan.describe():
        table.add_row(where, layers)
    print_table(table, standard_output())
