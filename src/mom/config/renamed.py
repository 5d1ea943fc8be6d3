"""Options that were renamed: an old name is rejected with one line that gives the new one."""

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
"""Old dotted names and their new ones. Add a line for each option whose name changes."""


def renamed(option: str) -> str | None:
    """Return the error message for an option's old name, or ``None`` if it is not an old name."""
    new = RENAMED.get(option.lstrip("+~"))
    return None if new is None else f"{option} was renamed to {new}"
