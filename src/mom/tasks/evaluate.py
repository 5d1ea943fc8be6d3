"""Task ``evaluate``: measure a model on text, GLUE, XSum, a control, or tasks of the evaluation harness."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning.fabric import Fabric
from transformers import PreTrainedTokenizerFast

from mom.config import ClassificationConfig, DataConfig, EvaluateConfig, GlueConfig, RunConfig, XsumConfig
from mom.config.checks import check_length
from mom.console import build_table, print_report
from mom.data.classification import find_task, labeled_data
from mom.data.controls import Control
from mom.data.tokenizer import load_model_tokenizer
from mom.data.xsum import XsumDataModule
from mom.errors import UsageError
from mom.evaluation.controls import evaluate_control
from mom.evaluation.glue import measure_glue, print_task
from mom.evaluation.harness import run_harness
from mom.evaluation.language import evaluate_text
from mom.evaluation.xsum import measure_xsum
from mom.interop import load_model
from mom.interop.loading import find_classifier
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.classification import ClassificationModule
from mom.training.language_modeling import SummarizationModule


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Evaluate the model in ``init`` on the request's data and print a table.

    The model's own tokenizer is used. GLUE and XSum are measured as at the end of ``task=finetune``.

    Returns:
        The results of :func:`mom.evaluation.language.evaluate_text`, :func:`mom.evaluation.glue.measure_glue`,
        :func:`mom.evaluation.xsum.measure_xsum`, :func:`mom.evaluation.controls.evaluate_control`, or
        :func:`mom.evaluation.harness.run_harness`.

    Raises:
        UsageError: weights, tokenizer, or data cannot be used; raised before measuring.
    """
    task, data, init = config.task, config.data, config.init
    assert isinstance(task, EvaluateConfig) and init is not None
    if task.harness is not None:
        model = load_model(init).eval()
        tokenizer = load_model_tokenizer(init, data.tokenizer, model.config)
        return evaluate_harness(config, task, task.harness, model, tokenizer, run)
    if isinstance(data, DataConfig):
        return evaluate_text(config, task, data, init, load_model(init).eval(), run)
    if task.split != "validation":
        raise UsageError(f"task.split must be validation for data={data.kind}, got {task.split}")
    if task.stride is not None:
        raise UsageError(f"task.stride cannot be combined with data={data.kind}")
    if isinstance(data, GlueConfig | ClassificationConfig):
        return evaluate_glue(config, data, init, run)
    if isinstance(data, Control):
        return evaluate_control(config, data, init, load_model(init).eval(), run)
    assert isinstance(data, XsumConfig)
    return evaluate_xsum(config, data, init, run)


def evaluate_glue(
    config: RunConfig, data: GlueConfig | ClassificationConfig, init: str, run: RunDirectory
) -> dict[str, Any]:
    """Measure a fine-tuned classifier on its task's validation sets, and write predictions for the test sets."""
    glue = find_task(data)
    model = find_classifier(init)
    if model is None:
        raise UsageError(
            f"init={init} must be a classifier with {glue.num_labels} label(s), not a language model; train one with "
            "task=finetune"
        )
    labels = tuple(str(name) for name in (model.config.id2label or {}).values())
    if model.score.out_features != glue.num_labels or (glue.labels and labels != glue.labels):
        raise UsageError(
            f"init={init} must be a classifier of {', '.join(glue.labels) or 'one number'}, fine-tuned on {glue.name}, "
            f"got one of {', '.join(labels)}"
        )
    check_length(data.sequence_length, model.config.max_positions)
    examples = labeled_data(data, config.seed, load_model_tokenizer(init, data.tokenizer, model.config))
    module = ClassificationModule(
        model, dataclasses.asdict(config.optimizer), glue.metrics, sets=glue.validations
    )
    results = measure_glue(config, module, examples, run, logged=True)
    print_task(glue, results, run.path)
    return results


def evaluate_xsum(config: RunConfig, data: XsumConfig, init: str, run: RunDirectory) -> dict[str, Any]:
    """Measure a language model by its summaries of the validation documents and, if there are any, test documents."""
    model = load_model(init)
    data = data.fitted(model.config.max_positions)
    check_length(data.window, model.config.max_positions)
    examples = XsumDataModule(data, config.seed, load_model_tokenizer(init, data.tokenizer, model.config))
    module = SummarizationModule(model.config.to_dict(), dataclasses.asdict(config.optimizer), model)
    return measure_xsum(config, module, examples, run, logged=True)


def evaluate_harness(
    config: RunConfig,
    task: EvaluateConfig,
    names: list[str],
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    run: RunDirectory,
) -> dict[str, Any]:
    """Measure a language model on tasks of the harness, and print and return :func:`run_harness`'s results."""
    device = Fabric(accelerator=config.trainer.accelerator, devices=1).device
    model.to(device)
    results = run_harness(
        model,
        tokenizer,
        names,
        batch_size=config.data.batch_size,
        path=task.harness_path,
        num_fewshot=task.num_fewshot,
        limit=task.harness_limit,
        seed=config.seed,
    )
    rows = [[name.removeprefix("harness/"), f"{value:.4f}"] for name, value in results.items()]
    print_report(build_table(["task and metric", "value"], rows, title=f"lm-eval, {config.init}"), run.path)
    return results
