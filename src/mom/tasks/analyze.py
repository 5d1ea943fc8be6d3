"""Task ``analyze``: record a model's routing on any text, and report it in tables, figures, and a web page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from mom.analysis.choice_value import measure_choice_value, num_value_passes
from mom.analysis.choices import Choices
from mom.analysis.dependence import MAX_TOKENS, choice_dependence, round_changes
from mom.analysis.difficulty import Groups, depth_by_difficulty
from mom.analysis.interventions import measure_removal, measure_similarity, num_passes
from mom.analysis.messages import (
    fact_rows,
    footer,
    module_cells,
    module_notes,
    pool_tables,
    slot_name,
)
from mom.analysis.recording import batch_windows, record, split_windows
from mom.analysis.regret import measure_regret
from mom.analysis.report.choices import choice_figures, choice_tables
from mom.analysis.report.page import Table, pieces, render
from mom.analysis.samples import Batch
from mom.analysis.statistics import Routing, depth_statistics, routing_statistics
from mom.analysis.summary import draw_figures, module_parameters, summarize
from mom.analysis.tables import (
    Rows,
    module_table,
    removal_table,
    similarity_table,
    token_table,
    use_table,
    write_tables,
)
from mom.analysis.token_classes import CLASSES, code_classes
from mom.analysis.traces import Header, Traces
from mom.config import AnalyzeConfig, DataConfig, RunConfig
from mom.config.checks import check_length
from mom.console import build_table, print_line, print_table
from mom.data.prepare import prepare
from mom.data.token_files import TokenFile
from mom.data.tokenizer import find_tokenizer, load_model_tokenizer
from mom.errors import UsageError
from mom.interop import load_model
from mom.metrics.choice_value import ChoiceValue
from mom.metrics.modules import Removal
from mom.metrics.regret import BestPath, Swap
from mom.model import MoMForCausalLM
from mom.plots.style import write_figure
from mom.runs.directory import RunDirectory
from mom.runs.files import write_text_atomic

Context = Callable[[], AbstractContextManager]

REPORT, FIGURES = "report.html", "figures"
WRITTEN = (
    (REPORT, "report to open in a browser"),
    ("routing.parquet", "every choice: stage, round, pool, rank, module, weight"),
    ("tokens.parquet", "every token: loss, effective and weighted depth"),
    ("modules.csv", "each module: use, loss without it, most similar module"),
    ("use.csv", "use of each module by round"),
    ("tokens_of_modules.csv", "token types that are characteristic of each module"),
    ("similarity.csv", "similarity of modules"),
    ("removal.csv", "loss after module ablation, one at a time and greedy"),
    ("choice_value.csv", "loss with other choices in place of the routers'"),
    ("regret.csv", "better choices in hindsight, one at a time"),
    ("paths.csv", "better paths in hindsight"),
    ("dependence.csv", "what the choices depend on"),
    ("changes.csv", "tokens that change their choice from round to round"),
    ("difficulty.csv", "depth by loss and by class of token"),
    ("tables.json", "all tables"),
    (FIGURES, "figures as PNG files"),
)
"""Files that the task may write, and their contents."""


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Record and report the routing of the model in ``ckpt`` or ``init`` on the request's data.

    The model's own tokenizer is used. Writes ``routing.parquet`` and ``tokens.parquet`` (:mod:`mom.analysis.traces`),
    the tables of :mod:`mom.analysis.tables`, ``figures/``, and ``report.html``.

    Returns:
        The metrics in the printed table, and ``data/fingerprint``.

    Raises:
        UsageError: weights, tokenizer, or data cannot be used; raised before recording.
    """
    task, data = config.task, config.data
    option = "init" if config.ckpt is None else "ckpt"
    source = config.init or config.ckpt
    assert isinstance(task, AnalyzeConfig) and isinstance(data, DataConfig) and source is not None
    model = load_model(source, option).eval()
    stages = _check(model, task, data, option, source)
    tokenizer = load_model_tokenizer(source, data.tokenizer, model.config)
    prepared = prepare(dataclasses.replace(data, tokenizer=find_tokenizer(source, data.tokenizer)))
    files, fingerprint = prepared.split_files(task.split), prepared.fingerprint
    fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    model.to(fabric.device)
    text = f"{data.path or data.corpus}, {task.split}"
    header = Header(model.config.to_dict(), source, text, stages)
    with Progress(transient=True, disable=not config.trainer.enable_progress_bar) as progress:
        traces = _record(
            model, files, tokenizer.eos_token_id, task, data, header, run.path, fabric.autocast, progress
        )
        routing = routing_statistics(traces)
        depths = depth_statistics(traces)
        num_inputs = task.similarity_inputs
        batches = _batches(files, task, data, tokenizer.eos_token_id, model.device, task.ablation_tokens)
        pairs = (
            measure_similarity(model, batches, num_inputs, seed=config.seed, context=fabric.autocast)
            if num_inputs
            else []
        )
        removal = _removal(model, batches, task, fabric.autocast, progress)
        batches = _batches(files, task, data, tokenizer.eos_token_id, model.device, task.value_tokens)
        sample = [Batch.of_text(ids) for ids in batches]
        groups = _token_classes(traces, tokenizer)
        choices = _choices(
            model, sample, traces, routing, groups, task, config.seed, fabric.autocast, progress
        )
    name = Path(config.run_dir).name
    facts = summarize(model, header, depths, routing, removal, task.ablation_tolerance, data.sequence_length)
    facts |= choices.facts()
    drawn = draw_figures(header, routing, depths, pairs, removal, task.ablation_tolerance, name)
    drawn |= choice_figures(choices, name)
    about_choices = choice_tables(choices, sum(len(batch.ids) for batch in sample))
    tables = {
        "use": use_table(header, routing),
        "modules": module_table(
            header, routing, module_parameters(model), pairs, removal, task.ablation_tolerance
        ),
        "tokens_of_modules": token_table(header, routing, tokenizer, task.top_tokens),
        "similarity": similarity_table(pairs),
        "removal": [] if removal is None else removal_table(removal),
        **choices.tables(),
    }
    if run.writes:
        for key, figure in drawn.items():
            write_figure(figure.figure, run.path / FIGURES / f"{key}.png")
        write_tables(run.path, tables)
        page = render(
            traces,
            tokenizer,
            title=f"Routing of {name}",
            facts=fact_rows(facts, header),
            pools=pool_tables(header, tables["modules"], tables["tokens_of_modules"]),
            module_notes=module_notes(removal, task.ablation_tolerance),
            choices=about_choices,
            figures=list(drawn.values()),
            footer=footer(source, text, fingerprint),
            num_tokens=task.report_tokens,
        )
        write_text_atomic(run.path / REPORT, page)
    _print(facts, header, tables["modules"], about_choices, run.path)
    return {**facts, "data/fingerprint": fingerprint}


def _check(
    model: MoMForCausalLM, task: AnalyzeConfig, data: DataConfig, option: str, source: str
) -> list[int]:
    """Check the model and the options, and return the stages to record."""
    config = model.config
    if not config.num_stages:
        raise UsageError(
            f"{option}={source} must be a model with stages, not a plain transformer, which has no routing"
        )
    check_length(data.sequence_length, config.max_positions)
    stages = list(range(config.num_stages)) if task.stages is None else sorted(task.stages)
    if stages[-1] >= config.num_stages:
        raise UsageError(
            f"task.stages must be below {config.num_stages}, the model's number of stages, got {stages}"
        )
    return stages


def _record(
    model: MoMForCausalLM,
    files: Sequence[TokenFile],
    end_of_text: int | None,
    task: AnalyzeConfig,
    data: DataConfig,
    header: Header,
    folder: Path,
    context: Context,
    progress: Progress,
) -> Traces:
    windows = split_windows(files, data.sequence_length, end_of_text)
    total = sum(file.count for file in files)
    bar = progress.add_task("recording tokens", total=min(total, task.num_tokens or total))
    return record(
        model,
        batch_windows(windows, data.batch_size, task.num_tokens),
        folder,
        header,
        context=context,
        on_progress=lambda tokens: progress.advance(bar, tokens),
    )


def _batches(
    files: Sequence[TokenFile],
    task: AnalyzeConfig,
    data: DataConfig,
    end_of_text: int | None,
    device: Any,
    num_tokens: int,
) -> list[torch.Tensor]:
    """Return at most ``num_tokens`` of the first recorded tokens, int64 [B, T], for interventions."""
    num_tokens = min(num_tokens, task.num_tokens or num_tokens)
    if not num_tokens:
        return []
    windows = split_windows(files, data.sequence_length, end_of_text)
    batches = batch_windows(windows, data.batch_size, num_tokens)
    # A window of one token has no token to predict.
    stacked = (torch.from_numpy(np.stack([window.ids for window in batch])) for batch in batches)
    return [ids.to(device) for ids in stacked if ids.shape[1] > 1]


def _removal(
    model: MoMForCausalLM,
    batches: Sequence[torch.Tensor],
    task: AnalyzeConfig,
    context: Context,
    progress: Progress,
) -> Removal | None:
    if task.ablation == "none":
        return None
    greedy = task.ablation == "greedy"
    bar = progress.add_task("ablating modules", total=num_passes(model, greedy=greedy))
    return measure_removal(
        model,
        batches,
        greedy=greedy,
        context=context,
        on_progress=lambda passes: progress.advance(bar, passes),
    )


def _token_classes(traces: Traces, tokenizer: PreTrainedTokenizerFast) -> dict[str, Groups]:
    """Group the recorded tokens by their class in Python code, if any of the text is Python code."""
    tokens = traces.tokens(["token_id", "document"], first=MAX_TOKENS)
    ids, document = tokens["token_id"].to_pylist(), tokens["document"].to_numpy().astype(np.int64)
    special = set(tokenizer.all_special_ids)
    texts = [
        "" if token in special else text for token, text in zip(ids, pieces(tokenizer, ids), strict=True)
    ]
    classes = code_classes(texts, document)
    return {"token_class": Groups(classes, CLASSES)} if (classes >= 0).any() else {}


def _choices(
    model: MoMForCausalLM,
    sample: Sequence[Batch],
    traces: Traces,
    routing: Mapping[str, Routing],
    groups: Mapping[str, Groups],
    task: AnalyzeConfig,
    seed: int,
    context: Context,
    progress: Progress,
) -> Choices:
    """Measure what the choices depend on, what they are worth, and whether better ones exist."""
    values: Sequence[ChoiceValue] = ()
    swaps: Sequence[Swap] = ()
    paths: Sequence[BestPath] = ()
    if sample and task.value_tokens:
        bar = progress.add_task("replacing choices", total=num_value_passes(model))
        values = measure_choice_value(
            model,
            sample,
            seed=seed,
            context=context,
            on_progress=lambda passes: progress.advance(bar, passes),
        )
    if sample and task.regret_budget:
        bar = progress.add_task("trying other choices", total=task.regret_budget)
        swaps, paths = measure_regret(
            model,
            sample,
            task.regret_budget,
            task.regret_paths,
            seed=seed,
            context=context,
            on_progress=lambda tokens: progress.advance(bar, tokens),
        )
    return Choices(
        skips={pool: layout.num_modules for pool, layout in traces.header.pools.items()},
        changes={pool: round_changes(usage, traces.header) for pool, usage in routing.items()},
        dependence=choice_dependence(
            traces, {name: given.group for name, given in groups.items()}, seed=seed
        ),
        depths=depth_by_difficulty(traces, groups),
        values=values,
        swaps=swaps,
        paths=paths,
    )


def _print(
    facts: Mapping[str, Any], header: Header, modules: Rows, choices: Sequence[Table], folder: Path
) -> None:
    """Print the metrics, the tables of modules and of choices, and the written files."""
    rows = [[name, value] for name, value, _ in fact_rows(facts, header)[2:]]
    title = f"{header.source} on {header.text}"
    print_table(build_table(["", ""], rows, title=title, texts=2, show_header=False))
    headings, cells = module_cells(modules)
    rows = []
    for row, values in zip(modules, cells, strict=True):
        stage = f", stage {row['stage']}" if len(header.stages) > 1 else ""
        rows.append([f"{header.pools[row['kind']].label} {slot_name(row)}{stage}", *values])
    print_table(build_table(["module", *headings], rows, box=SIMPLE_HEAD, pad_edge=False))
    for about in choices:
        if about.title != "Depth against difficulty":
            print_table(
                build_table(about.headings, about.rows, title=about.title, box=SIMPLE_HEAD, pad_edge=False)
            )
    for name, meaning in WRITTEN:
        if (folder / name).exists():
            print_line(f"  {name:<22} {meaning}")
    print_line(f"Written to {folder}")
