"""Task ``cost``: report the parameters, depth, FLOPs, cache, and memory of models, without training."""

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
from mom.config.cluster import ClusterConfig
from mom.config.composition import CONFIG_NAME
from mom.config.model import invalid_model
from mom.console import announce, build_table, print_line, print_table
from mom.cost.budget import DEFAULT_FIELD, LIMIT, costs, options_of, solve, with_value
from mom.cost.estimate import Usage, flops_per_token, measured_usage, static_costs
from mom.cost.machine import matmul_dtype, weight_dtype
from mom.cost.memory import measure_in_processes
from mom.cost.plan import Plan, Planner
from mom.cost.report import cost_tables, plan_tables
from mom.data.prepare import prepare
from mom.data.tokenizer import find_tokenizer
from mom.data.windows import TokenWindows
from mom.errors import UsageError, unknown_choice
from mom.interop import load_model
from mom.metrics.names import label
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.files import write_json_atomic
from mom.training.optimizer import build_optimizer

FILE = "cost.json"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Print the costs of each model, and write them to ``cost.json``.

    The models are those in ``models`` and ``init``; without either, the chosen model. A sequence has
    ``data.sequence_length`` tokens; memory is measured for ``data.batch_size`` sequences on ``trainer.accelerator``
    with ``trainer.precision``.

    Returns:
        All numbers as ``<model>/<name>``, or as ``<name>`` if there is one model.

    Raises:
        UsageError: a model does not exist or has too few positions, or weights cannot be used.
    """
    task = config.task
    assert isinstance(task, CostConfig)
    length = config.data.sequence_length
    configs = _model_configs(config, task)
    weights = None if config.init is None else load_model(config.init)
    if weights is not None:
        configs[str(config.init)] = weights.config
    for name, model_config in configs.items():
        if length > model_config.max_positions:
            raise UsageError(
                f"data.sequence_length must be at most {model_config.max_positions}, the positions of {name}, "
                f"got {length}"
            )
    if task.budget is not None:
        return _within_budget(config, task, run)
    trainer, batch_size = config.trainer, config.data.batch_size
    columns = {
        name: static_costs(
            model_config, length, trainer.precision, batch_size, trainer.activation_checkpointing
        )
        for name, model_config in configs.items()
    }
    if weights is not None:
        usage = _measured_usage(weights, config, task)
        columns[str(config.init)] |= {
            **{f"usage/{name}": value for name, value in usage.items()},
            "flops/forward_actual": flops_per_token(weights.config, length, usage).total * length,
        }
    device = "cuda" if config.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    if task.measure_memory:
        for number, (name, model_config) in enumerate(configs.items(), 1):
            announce(f"measuring the memory of {name}, model {number} of {len(configs)}")
            columns[name] |= measure_in_processes(model_config, config, device, build_optimizer)
    plans = {} if config.cluster is None else _plans(config, config.cluster, task, configs)
    for (name, strategy), plan in plans.items():
        numbers = {**dataclasses.asdict(plan), "memory": plan.memory, "step": plan.step}
        columns[name] |= {f"plan/{strategy}/{key}": value for key, value in numbers.items()}
    settings = {
        "sequence_length": length,
        "batch_size": config.data.batch_size,
        "precision": str(config.trainer.precision),
        "device": device,
        "routed_on": task.routed_on if weights is not None else None,
    }
    tables = cost_tables(
        columns,
        length=length,
        batch_size=batch_size,
        precision=str(trainer.precision),
        device=device,
    )
    if config.cluster is not None:
        num = config.cluster.num_devices
        tables += plan_tables(plans, f"{num} of them × {batch_size} × {length} tokens, {trainer.precision}")
    _print(tables, settings, run.path / FILE)
    if run.writes:
        write_json_atomic(run.path / FILE, {"settings": settings, "models": columns})
    if len(columns) == 1:
        return {**next(iter(columns.values())), **settings}
    return {f"{name}/{key}": value for name, column in columns.items() for key, value in column.items()}


def _within_budget(config: RunConfig, task: CostConfig, run: RunDirectory) -> dict[str, Any]:
    """Find and print the largest pool, K, or H with which the chosen model costs no more than ``reference_model``."""
    assert task.budget is not None and task.reference_model is not None
    vocabulary, name = _vocabulary(config), task.reference_model
    base, reference = config.model_config(vocabulary), _preset("reference_model", name, config, vocabulary)
    if not base.num_stages:
        raise UsageError(
            "model.num_stages must be at least 1 with budget, got 0: a plain model has no pool, K, or H"
        )
    field = task.solve_for or DEFAULT_FIELD[task.budget]
    if field == "modules" and any(layout.schedule != "all" for layout in base.pools()):
        raise UsageError(
            "task.solve_for must be top_k or rounds if rounds have modules of their own (model.schedule), got modules"
        )
    precision = config.trainer.precision
    sizes = matmul_dtype(precision).itemsize, weight_dtype(precision).itemsize
    measures = costs(config.data.sequence_length, config.data.batch_size, *sizes)
    limit = measures[task.budget](reference)
    chosen = solve(base, field, limit, measures[task.budget])
    if chosen == LIMIT:
        raise UsageError(
            f"task.solve_for={field} cannot be combined with budget={task.budget}: {LIMIT} {field} still cost less "
            f"than {name}"
        )
    if chosen is None:
        raise UsageError(
            f"cannot meet budget={task.budget}: with any {field} the model costs more than {name}"
        )

    near = {value: with_value(base, field, value) for value in range(max(1, chosen - 2), chosen + 3)}
    models = {str(value): model_config for value, model_config in near.items() if model_config is not None}
    configs = {name: reference, **models}
    measured = {
        model: {cost: measure(model_config) for cost, measure in measures.items()}
        for model, model_config in configs.items()
    }
    within = {
        model: "chosen" if int(model) == chosen else "yes" if int(model) < chosen else "no"
        for model in models
    }
    rows = [
        [
            model,
            label("parameters").write(found["params"]),
            label("flops/forward").write(found["flops"]),
            label("forward/total").write(found["memory"]),
            str(configs[model].graph_depth),
            within.get(model, ""),
        ]
        for model, found in measured.items()
    ]
    headings = ["", "parameters", "GFLOP/sequence", "memory of a forward pass (MiB)", "graph depth", "within"]
    override = " ".join(f"model.{option}={chosen}" for option in options_of(base, field))
    print_table(build_table(headings, rows, title=f"{field} within the {task.budget} of {name}"))
    print_line(f"Use: {override}")
    result = {
        "budget": task.budget,
        "reference_model": name,
        "limit": limit,
        "field": field,
        "chosen": chosen,
    }
    result |= {"override": override}
    if run.writes:
        neighbors = {model: measured[model] for model in models}
        write_json_atomic(run.path / FILE, {"settings": result, "models": neighbors})
    return {**result, **measured[str(chosen)]}


def _model_configs(config: RunConfig, task: CostConfig) -> dict[str, MoMConfig]:
    """Return the configurations of ``models``, or of the chosen model, by name."""
    vocabulary = _vocabulary(config)
    if task.models is None:
        return {} if config.init is not None else {"model": config.model_config(vocabulary)}
    overrides = [line for line in _overrides() if line.partition("=")[0] not in ("model", "models")]
    return {name: _preset("models", name, config, vocabulary, overrides) for name in task.models}


def _overrides() -> Sequence[str]:
    """Return the overrides of the command line; none if the task was started from Python."""
    return HydraConfig.get().overrides.task if HydraConfig.initialized() else ()


def _vocabulary(config: RunConfig) -> int:
    """Return ``model.vocab_size``, or if it is null, the vocabulary size of a tokenizer trained by this request."""
    trained = config.data.tokenizer_vocab_size if isinstance(config.data, DataConfig) else 50257
    size = config.model.get("vocab_size")
    return trained if size is None else size


def _preset(
    option: str, name: str, config: RunConfig, vocabulary: int, overrides: Sequence[str] = ()
) -> MoMConfig:
    """Return the configuration of a preset of the model group with the request's router and ``overrides``."""
    if not GlobalHydra.instance().is_initialized():
        raise UsageError(f"{option} requires the command line, which finds the presets of the model group")
    choices = GlobalHydra.instance().config_loader().get_group_options("model")
    if name not in choices:
        raise unknown_choice(option, name, choices)
    composed = compose(CONFIG_NAME, overrides=[*overrides, f"model={name}"])
    fields: Any = OmegaConf.to_container(composed.model, resolve=True)
    try:
        return MoMConfig(**fields | config.router | {"vocab_size": vocabulary})
    except ValueError as reason:
        raise UsageError(f"{invalid_model(reason)} ({option}={name})") from reason


@torch.no_grad()
def _measured_usage(model: MoMForCausalLM, config: RunConfig, task: CostConfig) -> Usage:
    """Return the modules per round of each pool, averaged over the tokens of a few batches."""
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
    sizes = [len(ids) for ids in batches]  # all sequences are equally long
    return {
        name: sum(usage[name] * size for usage, size in zip(used, sizes, strict=True)) / sum(sizes)
        for name in used[0]
    }


def _validation_batches(config: RunConfig) -> list[torch.Tensor]:
    """Return up to four batches of validation windows, tokenized by the model's own tokenizer."""
    if not isinstance(config.data, DataConfig):
        raise UsageError(f"task.routed_on must be random for data={config.data.kind}, got validation")
    assert config.init is not None
    tokenizer = find_tokenizer(config.init, config.data.tokenizer)
    prepared = prepare(dataclasses.replace(config.data, tokenizer=tokenizer))
    windows = TokenWindows(prepared.validation, config.data.sequence_length)
    loader: DataLoader[Any] = DataLoader(windows, batch_size=config.data.batch_size)
    return [batch["input_ids"] for batch, _ in zip(loader, range(4), strict=False)]


def _plans(
    config: RunConfig, cluster: ClusterConfig, task: CostConfig, configs: dict[str, MoMConfig]
) -> dict[tuple[str, str], Plan]:
    """Return the plan for each model and strategy on the cluster."""
    return {
        (name, strategy): plan
        for name, model_config in configs.items()
        for strategy, plan in Planner(
            model_config,
            cluster,
            config.data.batch_size,
            config.data.sequence_length,
            config.trainer,
            task.num_tokens,
        )
        .plans()
        .items()
    }


def _print(tables: list[Table], settings: dict[str, Any], path: Path) -> None:
    for table in tables:
        print_table(table)
    if settings["routed_on"] is not None:
        text = {"random": "random tokens", "validation": "validation text"}[settings["routed_on"]]
        print_line(f"As routed: the modules that init uses for {text}.")
    print_line(f"Written to {path}")
