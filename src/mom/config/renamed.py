"""Options that were renamed: an old name is rejected with one line that gives the new one."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "task.along": "task.cost_metric",
    "task.against": "task.reference_metric",
    "task.by": "task.group_by",
}
"""Old dotted names to new ones. Add a line for each option that changes its name."""
