"""Measure a model on the validation examples of a control."""

from __future__ import annotations

import dataclasses
from typing import Any

from mom.config import RunConfig
from mom.config.checks import check_length
from mom.console import print_report
from mom.data.controls import Control
from mom.data.controls.batches import ControlDataModule
from mom.errors import UsageError
from mom.evaluation.measure import evaluate_module
from mom.evaluation.report import results_table
from mom.metrics.names import CHANCE
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.controls import ControlModule


def evaluate_control(
    config: RunConfig, control: Control, init: str, model: MoMForCausalLM, run: RunDirectory
) -> dict[str, Any]:
    """Measure the exact match and the loss of a model, and print a table.

    Returns:
        The metrics of :func:`mom.evaluation.measure.evaluate_module`, ``chance/exact_match``, and ``data/fingerprint``.

    Raises:
        UsageError: the examples do not fit the model.
    """
    check_length(control.sequence_length, model.config.max_positions)
    if control.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"init={init} must be a model with at least {control.vocab_size} tokens for data=control/{control.name}, "
            f"got {model.config.vocab_size}"
        )
    data = ControlDataModule(control, config.seed)
    data.setup()
    module = ControlModule(
        model.config.to_dict(), dataclasses.asdict(config.optimizer), control.buckets, model=model
    )
    results = evaluate_module(config, module, data.val_dataloader(), run, phase="evaluate")
    results[CHANCE] = control.chance
    print_report(results_table({init: results}, f"control/{control.name}, validation"), run.path)
    return {**results, "data/fingerprint": data.fingerprint}
