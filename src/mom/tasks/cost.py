"""What models cost: parameters, depth, operations, cache, and measured memory; no training, no data needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.table import Table
from torch.utils.data import DataLoader

from mom.config import CostConfig, DataConfig, RunConfig
from mom.config.composition import CONFIG_NAME
from mom.config.request import invalid_model
from mom.console import print_table, standard_output
from mom.cost.budget import DEFAULT_FIELD, LIMIT, costs, options_of, solve, with_value
from mom.cost.estimate import Usage, flops_per_token, measured_usage, static_costs
from mom.cost.machine import matmul_dtype
from mom.cost.memory import measure_in_processes
from mom.data.prepare import prepare
from mom.data.tokenizer import find_tokenizer
from mom.data.windows import TokenWindows
from mom.errors import RequestError, UsageError, one_of
from mom.interop import load_model
from mom.metrics.modules import pool_label
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.files import write_json_atomic
from mom.training.optimizer import build_adamw

FILE = "cost.json"

_COUNT, _GIGA, _MIB, _DEPTH = "{:,.0f}", "{:,.3f}", "{:,.1f}", "{:.2f}"
# Label, name, how it is written, what one unit is in the table.
ROWS = (
    ("parameters", "parameters", _COUNT, 1),
    ("parameters a token passes (at most)", "parameters/active", _COUNT, 1),
    ("vocabulary", "vocab_size", _COUNT, 1),
    ("graph depth (blocks)", "depth/graph", _COUNT, 1),
    ("forward, no SKIP (GFLOP per sequence)", "flops/forward", _GIGA, 1e9),
    ("  plain blocks", "flops/blocks", _GIGA, 1e9),
    ("  modules", "flops/modules", _GIGA, 1e9),
    ("  attention scores and sums", "flops/attention", _GIGA, 1e9),
    ("  routers", "flops/routers", _GIGA, 1e9),
    ("  output head", "flops/head", _GIGA, 1e9),
    ("forward, as routed (GFLOP per sequence)", "flops/forward_actual", _GIGA, 1e9),
    ("KV cache (bytes per token)", "kv_cache/bytes_per_token", _COUNT, 1),
    ("forward with a cache, computed (MiB)", "forward/total", _MIB, 2**20),
    ("  parameters", "forward/parameters", _MIB, 2**20),
    ("  cache", "forward/cache", _MIB, 2**20),
    ("  activations (largest, computed)", "forward/activations", _MIB, 2**20),
    ("  activations (measured)", "memory/forward_activations", _MIB, 2**20),
    ("peak of a forward (MiB)", "memory/forward", _MIB, 2**20),
    ("peak of a training step (MiB)", "memory/training", _MIB, 2**20),
    ("  parameters", "memory/parameters", _MIB, 2**20),
    ("  optimizer state", "memory/optimizer", _MIB, 2**20),
    ("  gradients, activations, buffers", "memory/working", _MIB, 2**20),
)


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Print what each model costs and write the same as ``cost.json``.

    The models are those of ``models``, and that of ``init``; without either, that of the model group.

    Args:
        config: the request; ``data.sequence_length`` tokens a sequence, ``data.batch_size`` of them in the
            memory measurements, ``trainer.precision`` and ``trainer.accelerator`` as in training.
        run: the run's directory.

    Returns:
        Every number as ``<model>/<name>``; without ``<model>/`` where there is one model.

    Raises:
        RequestError: a model that does not exist or does not fit the sequence length, or unusable weights.
    """
    task = config.task
    assert isinstance(task, CostConfig)
    length = config.data.sequence_length
    configs = _configs(config, task)
    weights = None if config.init is None else load_model(config.init)
    if weights is not None:
        configs[str(config.init)] = weights.config
    for name, model_config in configs.items():
        if length > model_config.max_positions:
            raise RequestError(
                "data.sequence_length",
                length,
                f"at most the {model_config.max_positions} positions of {name}",
            )
    if task.budget is not None:
        return _within_budget(config, task, run)
    columns = {
        name: static_costs(one, length, config.trainer.precision, config.data.batch_size)
        for name, one in configs.items()
    }
    if weights is not None:
        usage = _routed(weights, config, task)
        columns[str(config.init)] |= {
            **{f"usage/{name}": value for name, value in usage.items()},
            "flops/forward_actual": flops_per_token(weights.config, length, usage).total * length,
        }
    device = _device(config.trainer.accelerator)
    if task.measure_memory:
        for name, model_config in configs.items():
            columns[name] |= measure_in_processes(model_config, config, device, build_adamw)
    settings = {
        "sequence_length": length,
        "batch_size": config.data.batch_size,
        "precision": str(config.trainer.precision),
        "device": device,
        "routed_on": task.routed_on if weights is not None else None,
    }
    _print(columns, settings, run.path)
    if run.writes:
        write_json_atomic(run.path / FILE, {"settings": settings, "models": columns})
    if len(columns) == 1:
        return {**next(iter(columns.values())), **settings}
    return {f"{name}/{key}": value for name, column in columns.items() for key, value in column.items()}


def _within_budget(config: RunConfig, task: CostConfig, run: RunDirectory) -> dict[str, Any]:
    """``budget=… of=…``: the largest pool, K or H of the chosen model that costs no more than the other one."""
    assert task.budget is not None and task.reference_model is not None
    vocabulary = _vocabulary(config)
    base, other = (
        config.model_config(vocabulary),
        _of_group("reference_model", task.reference_model, config, vocabulary),
    )
    if not base.num_stages:
        raise RequestError("model.num_stages", 0, "at least 1 with budget: a plain model has no pool, K or H")
    field = task.solve_for or DEFAULT_FIELD[task.budget]
    size = matmul_dtype(config.trainer.precision).itemsize
    measures = costs(config.data.sequence_length, config.data.batch_size, size)
    limit = measures[task.budget](other)
    if field == "modules" and any(layout.schedule != "all" for layout in base.pools()):
        raise RequestError(
            "task.solve_for", field, "top_k or rounds where rounds have modules of their own (model.schedule)"
        )
    chosen = solve(base, field, limit, measures[task.budget])
    if chosen == LIMIT:
        raise RequestError(
            "task.solve_for",
            field,
            f"what {task.budget} depends on: {LIMIT} {field} still cost less than {task.reference_model}",
        )
    if chosen is None:
        raise RequestError(
            "budget",
            task.budget,
            f"a cost that the model can meet: with any {field} it is above that of {task.reference_model}",
        )
    override = " ".join(f"model.{name}={chosen}" for name in options_of(base, field))
    near = {value: with_value(base, field, value) for value in range(max(1, chosen - 2), chosen + 3)}
    found: dict[int, dict[str, float]] = {}
    table = Table(title=f"{field} within the {task.budget} of {task.reference_model}", title_justify="left")
    for header in (
        "",
        "parameters",
        "GFLOP per sequence",
        "memory of a forward (MiB)",
        "graph depth",
        "within",
    ):
        table.add_column(header, justify="right")

    def row(label: str, made: MoMConfig, inside: str) -> dict[str, float]:
        told = {name: measure(made) for name, measure in measures.items()}
        flops, memory = _GIGA.format(told["flops"] / 1e9), _MIB.format(told["memory"] / 2**20)
        table.add_row(label, _COUNT.format(told["params"]), flops, memory, str(made.graph_depth), inside)
        return told

    row(task.reference_model, other, "")
    for value, made in near.items():
        if made is not None:
            inside = "chosen" if value == chosen else "yes" if value < chosen else "no"
            found[value] = row(str(value), made, inside)
    console = standard_output()
    print_table(table, console)
    console.print(f"Use: {override}", soft_wrap=True, highlight=False)
    result = {
        "budget": task.budget,
        "reference_model": task.reference_model,
        "limit": limit,
        "field": field,
        "chosen": chosen,
    }
    result |= {"override": override}
    if run.writes:
        neighbors = {str(value): one for value, one in found.items()}
        write_json_atomic(run.path / FILE, {"settings": result, "models": neighbors})
    return {**result, **found[chosen]}


def _configs(config: RunConfig, task: CostConfig) -> dict[str, MoMConfig]:
    """The models to be told about, by name."""
    vocabulary = _vocabulary(config)
    if task.models is None:
        return {} if config.init is not None else {"model": config.model_config(vocabulary)}
    given = [one for one in _overrides() if one.partition("=")[0] not in ("model", "models")]
    return {name: _of_group("models", name, config, vocabulary, given) for name in task.models}


def _overrides() -> Sequence[str]:
    """The command line; nothing outside of it."""
    return HydraConfig.get().overrides.task if HydraConfig.initialized() else ()


def _vocabulary(config: RunConfig) -> int:
    """No tokenizer is made here; null means the size that one trained by this request would have."""
    wanted = config.data.tokenizer_vocab_size if isinstance(config.data, DataConfig) else 50257
    given = config.model.get("vocab_size")
    return wanted if given is None else given


def _of_group(
    option: str, name: str, config: RunConfig, vocabulary: int, overrides: Sequence[str] = ()
) -> MoMConfig:
    """A choice of the model group with the request's router, and what else of the request is to hold for it."""
    if not GlobalHydra.instance().is_initialized():
        raise RequestError(option, name, "null outside of the command line")
    choices = GlobalHydra.instance().config_loader().get_group_options("model")
    if name not in choices:
        raise RequestError(option, name, one_of(name, choices))
    composed = compose(CONFIG_NAME, overrides=[*overrides, f"model={name}"])
    fields = OmegaConf.to_container(composed.model, resolve=True)
    assert isinstance(fields, dict)
    try:
        return MoMConfig(**fields | config.router | {"vocab_size": vocabulary})
    except ValueError as reason:
        raise UsageError(f"{invalid_model(reason)} ({option}={name})") from reason


@torch.no_grad()
def _routed(model: MoMForCausalLM, config: RunConfig, task: CostConfig) -> Usage:
    """Average the modules per round of each pool over a few batches."""
    shape = (config.data.batch_size, config.data.sequence_length)
    if task.routed_on == "random":
        generator = torch.Generator().manual_seed(config.seed)
        batches = [torch.randint(model.config.vocab_size, shape, generator=generator) for _ in range(4)]
    else:
        batches = _validation_batches(config)
    model.eval()
    used = [
        measured_usage(model.config, model(input_ids=ids, output_routing=True, logits_to_keep=1).routing)
        for ids in batches
    ]
    return {name: sum(usage[name] for usage in used) / len(used) for name in used[0]}


def _validation_batches(config: RunConfig) -> list[torch.Tensor]:
    """Up to four batches of the data's validation windows, tokenized by the model's own tokenizer."""
    if not isinstance(config.data, DataConfig):
        raise RequestError("task.routed_on", "validation", "random, for data that is no text to model")
    assert config.init is not None
    own = find_tokenizer(config.init, config.data.tokenizer)
    windows = TokenWindows(
        prepare(dataclasses.replace(config.data, tokenizer=own)).validation, config.data.sequence_length
    )
    loader: DataLoader[Any] = DataLoader(windows, batch_size=config.data.batch_size)
    return [batch["input_ids"] for batch, _ in zip(loader, range(4), strict=False)]


def _device(accelerator: str) -> str:
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _rows(columns: dict[str, dict[str, float]]) -> list[tuple[str, str, str, float]]:
    """Return the table's rows, with one for each pool's usage."""
    names = dict.fromkeys(key for column in columns.values() for key in column if key.startswith("usage/"))
    usage = [
        (f"{pool_label(name.removeprefix('usage/'))} modules per round, as routed", name, _DEPTH, 1)
        for name in names
    ]
    place = 1 + [row[1] for row in ROWS].index("flops/forward_actual")
    return [*ROWS[:place], *usage, *ROWS[place:]]


def _print(columns: dict[str, dict[str, float]], settings: dict[str, Any], folder: Path) -> None:
    title = (
        f"Cost; sequences of {settings['sequence_length']} tokens, memory at {settings['batch_size']} of them, "
        f"{settings['precision']} on {settings['device']}"
    )
    note = {
        "random": "As routed: the modules of init that random tokens took.",
        "validation": "As routed: the modules of init that validation text took.",
    }.get(settings["routed_on"])
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for label, key, form, unit in _rows(columns):
        values = [column.get(key) for column in columns.values()]
        if any(value is not None for value in values):
            table.add_row(label, *("–" if value is None else form.format(value / unit) for value in values))
    console = standard_output()
    print_table(table, console)
    console.print(f"Written to {folder / FILE}", soft_wrap=True, highlight=False)
