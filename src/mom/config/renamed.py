"""Renamed options: the error for an old name gives the new one."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "task.along": "task.cost_metric",
    "task.against": "task.reference_metric",
    "task.by": "task.group_by",
    "of": "reference_model",
    "task.of": "task.reference_model",
    "task.removal": "task.ablation",
    "task.removal_tokens": "task.ablation_tokens",
    "task.removal_tolerance": "task.ablation_tolerance",
    "task.harness_shots": "task.num_fewshot",
}
"""Old dotted names and their new ones. Add every option that you rename."""


def renamed(option: str) -> str | None:
    """Return the error message for an option's old name, or ``None`` if it is not an old name."""
    new = RENAMED.get(option.lstrip("+~"))
    return None if new is None else f"{option} was renamed to {new}"
