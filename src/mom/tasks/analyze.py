"""Task ``analyze``: record a model's routing on any text, and report it in tables, figures, and a web page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from rich.box import SIMPLE_HEAD

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
from mom.analysis.recording import record
from mom.analysis.regret import measure_regret
from mom.analysis.report.choices import choice_figures, choice_tables
from mom.analysis.report.headlines import headlines, own_validation
from mom.analysis.report.page import Table, pieces, render
from mom.analysis.samples import Batch, Context
from mom.analysis.sources import Source, control_source, text_source
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
from mom.data.controls import Control
from mom.errors import UsageError
from mom.interop import load_model
from mom.interop.weights import read_checkpoint
from mom.metrics.choice_value import ChoiceValue
from mom.metrics.modules import Removal
from mom.metrics.regret import BestPath, Swap
from mom.model import MoMForCausalLM
from mom.plots.style import write_figure
from mom.runs.describe import describe_run, run_of_weights
from mom.runs.directory import RunDirectory
from mom.runs.files import write_text_atomic
from mom.runs.progress import ProgressLine, track

Line = Callable[[str, int], ProgressLine]
"""Begins the line of a step, from its label and the number of its parts."""

REPORT, FIGURES = "report.html", "figures"
WRITTEN = (
    (REPORT, "report to open in a browser"),
    ("routing.parquet", "every choice: stage, round, pool, rank, module, weight"),
    ("tokens.parquet", "every token: loss, prediction, depths"),
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
    (FIGURES, "figures as PNG and SVG files"),
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
    assert isinstance(task, AnalyzeConfig) and source is not None
    if isinstance(data, DataConfig):
        corpus, data = data.part(task.corpus)
    elif task.corpus is not None:
        raise UsageError(f"task.corpus requires data=mixture, got data={data.kind}")
    model = load_model(source, option).eval()
    stages = _check(model, task, data.sequence_length, option, source)
    if isinstance(data, Control):
        given = control_source(data, task.split, f"{option}={source}", model.config, config.seed)
    else:
        assert isinstance(data, DataConfig)
        given = text_source(data, task.split, source, model.config, corpus)
    if model.config.router_kind.needs_choices and not given.knows_choices:
        raise UsageError(f"router={model.config.router} requires data with known choices, got {given.name}")
    fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    model.to(fabric.device)
    header = Header(model.config.to_dict(), source, given.name, stages)
    line = partial(ProgressLine, enabled=config.trainer.enable_progress_bar)
    traces = _record(model, given, task, header, run.path, fabric.autocast, line)
    routing = routing_statistics(traces)
    depths = depth_statistics(traces)
    num_inputs = task.similarity_inputs
    batches = given.sample(_at_most(task.ablation_tokens, task), model.device)
    pairs = (
        measure_similarity(model, batches, num_inputs, seed=config.seed, context=fabric.autocast)
        if num_inputs
        else []
    )
    removal = _removal(model, batches, task, fabric.autocast, line)
    sample = given.sample(_at_most(task.value_tokens, task), model.device)
    choices = _choices(model, sample, given, traces, routing, task, config.seed, fabric.autocast, line)
    run_folder = run_of_weights(source)
    name = f"{describe_run(run_folder)}; on {given.name}"
    facts = summarize(model, header, depths, routing, removal, task.ablation_tolerance, given.length)
    facts |= choices.facts()
    drawn = draw_figures(header, routing, depths, pairs, removal, task.ablation_tolerance, name)
    drawn |= choice_figures(choices, name)
    about_choices = choice_tables(choices, sum(len(batch.ids) for batch in sample))
    tables = {
        "use": use_table(header, routing),
        "modules": module_table(
            header, routing, module_parameters(model), pairs, removal, task.ablation_tolerance
        ),
        "tokens_of_modules": token_table(header, routing, given.tokenizer, task.top_tokens),
        "similarity": similarity_table(pairs),
        "removal": [] if removal is None else removal_table(removal),
        **choices.tables(),
    }
    if run.writes:
        has_bar = config.trainer.enable_progress_bar
        for key, figure in track(drawn.items(), "writing figures", len(drawn), enabled=has_bar):
            write_figure(figure.figure, run.path / FIGURES / f"{key}.png")
        write_tables(run.path, tables)
        page = render(
            traces,
            given.tokenizer,
            title=f"Routing of {run_folder.name}",
            subtitle=f"{name}.",
            headlines=headlines(
                facts, header, depths, choices, own_validation(source, _step(source, option))
            ),
            facts=fact_rows(facts, header),
            pools=pool_tables(header, tables["modules"], tables["tokens_of_modules"]),
            module_notes=module_notes(removal, task.ablation_tolerance),
            choices=about_choices,
            figures=list(drawn.values()),
            footer=footer(source, given.name, given.fingerprint),
            num_tokens=task.report_tokens,
        )
        write_text_atomic(run.path / REPORT, page)
    _print(facts, header, tables["modules"], about_choices, run.path)
    return {**facts, "data/fingerprint": given.fingerprint}


def _step(source: str, option: str) -> int:
    """Return the optimizer steps of a checkpoint; -1 for other weights."""
    path = Path(source)
    return int(read_checkpoint(path, option).get("global_step", -1)) if path.is_file() else -1


def _check(model: MoMForCausalLM, task: AnalyzeConfig, length: int, option: str, source: str) -> list[int]:
    """Check the model and the options, and return the stages to record."""
    config = model.config
    if not config.num_stages:
        raise UsageError(
            f"{option}={source} must be a model with stages, not a plain transformer, which has no routing"
        )
    check_length(length, config.max_positions)
    stages = list(range(config.num_stages)) if task.stages is None else sorted(task.stages)
    if stages[-1] >= config.num_stages:
        raise UsageError(
            f"task.stages must be below {config.num_stages}, the model's number of stages, got {stages}"
        )
    return stages


def _record(
    model: MoMForCausalLM,
    given: Source,
    task: AnalyzeConfig,
    header: Header,
    folder: Path,
    context: Context,
    line: Line,
) -> Traces:
    total = given.num_tokens
    with line("recording tokens", min(total, task.num_tokens or total)) as shown:
        return record(
            model,
            given.batches(task.num_tokens),
            folder,
            header,
            context=context,
            on_progress=shown.advance,
        )


def _at_most(num_tokens: int, task: AnalyzeConfig) -> int:
    """Bound a number of tokens by the number of recorded tokens."""
    return min(num_tokens, task.num_tokens or num_tokens)


def _removal(
    model: MoMForCausalLM,
    batches: Sequence[Batch],
    task: AnalyzeConfig,
    context: Context,
    line: Line,
) -> Removal | None:
    if task.ablation == "none":
        return None
    greedy = task.ablation == "greedy"
    with line("ablating modules", num_passes(model, greedy=greedy)) as shown:
        return measure_removal(model, batches, greedy=greedy, context=context, on_progress=shown.advance)


def _known_groups(given: Source, traces: Traces) -> dict[str, Groups]:
    """Return the source's groups of tokens, and their classes if any of the text is Python code."""
    groups = dict(given.groups)
    if given.tokenizer is not None:
        tokens = traces.tokens(["token_id", "document"], first=MAX_TOKENS)
        ids, document = tokens["token_id"].to_pylist(), tokens["document"].to_numpy().astype(np.int64)
        special, texts = set(given.tokenizer.all_special_ids), pieces(given.tokenizer, ids)
        texts = ["" if token in special else text for token, text in zip(ids, texts, strict=True)]
        classes = code_classes(texts, document)
        if (classes >= 0).any():
            groups["token_class"] = Groups(classes, CLASSES)
    return groups


def _choices(
    model: MoMForCausalLM,
    sample: Sequence[Batch],
    given: Source,
    traces: Traces,
    routing: Mapping[str, Routing],
    task: AnalyzeConfig,
    seed: int,
    context: Context,
    line: Line,
) -> Choices:
    """Measure what the choices depend on, what they are worth, and whether better ones exist."""
    values: Sequence[ChoiceValue] = ()
    swaps: Sequence[Swap] = ()
    paths: Sequence[BestPath] = ()
    if sample and task.value_tokens:
        with line("replacing choices", num_value_passes(model)) as shown:
            values = measure_choice_value(
                model, sample, seed=seed, context=context, on_progress=shown.advance
            )
    if sample and task.regret_budget:
        with line("trying other choices", task.regret_budget) as shown:
            swaps, paths = measure_regret(
                model,
                sample,
                task.regret_budget,
                task.regret_paths,
                seed=seed,
                context=context,
                on_progress=shown.advance,
            )
    groups = _known_groups(given, traces)
    attributes = {name: found.group for name, found in groups.items()} | dict(given.attributes)
    return Choices(
        skips={pool: layout.num_modules for pool, layout in traces.header.pools.items()},
        changes={pool: round_changes(usage, traces.header) for pool, usage in routing.items()},
        dependence=choice_dependence(traces, attributes, seed=seed),
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
