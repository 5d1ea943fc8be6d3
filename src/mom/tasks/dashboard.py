"""Task ``dashboard``: create a Weights & Biases workspace with all metrics in sections, figures, and samples."""

from __future__ import annotations

from typing import Any

from mom.config import DashboardConfig, RunConfig
from mom.console import announce
from mom.errors import UsageError
from mom.metrics.names import FIGURES, SAMPLES, SECTIONS
from mom.runs.directory import RunDirectory
from mom.runs.files import write_json_atomic

FILE = "workspace.json"
STEP = "trainer/global_step"
OPEN = ("val", "train", "depth")


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Write the workspace's specification, and save it to Weights & Biases unless :func:`is_offline`.

    Returns:
        The numbers of ``sections`` and ``panels``, and the ``url`` of the workspace, or null if it was not saved.

    Raises:
        UsageError: ``wandb-workspaces`` is not installed, or there is no default for ``task.entity``.
    """
    task = config.task
    assert isinstance(task, DashboardConfig)
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as reason:
        raise UsageError(
            "task=dashboard requires wandb-workspaces: pip install 'mixture-of-modules[dashboard]'"
        ) from reason
    offline = is_offline()
    entity = task.entity
    if entity is None and not offline:
        import wandb

        entity = wandb.Api().default_entity
        if entity is None:
            raise UsageError("task.entity must be a user or team of Weights & Biases, got null")
    workspace = build_workspace(entity or "", task.project, task.title)
    # The same format as save() sends.
    specification = workspace._to_model().model_dump(mode="json", by_alias=True)
    if run.writes:
        write_json_atomic(run.path / FILE, specification)
    announce(f"Written to {run.path / FILE}")
    if offline:
        announce("Weights & Biases is offline, so nothing was sent; run wandb login and this task again")
        url = None
    else:
        workspace.save()
        url = workspace.url
        announce(f"Saved to {url}")
    sections = workspace.sections
    return {"sections": len(sections), "panels": sum(len(section.panels) for section in sections), "url": url}


def build_workspace(entity: str, project: str, title: str) -> Any:
    """Build a ``wandb_workspaces.workspaces.Workspace`` with a section per group and a panel per metric."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=name,
            is_open=name in OPEN,
            panels=[panels.LinePlot(title=metric, x=STEP, y=[metric]) for metric in metrics],
        )
        for name, metrics in SECTIONS.items()
    ]
    figures = panels.MediaBrowser(title="figures", media_keys=list(FIGURES), num_columns=2)
    samples = panels.WeavePanelSummaryTable(table_name=SAMPLES)
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[
            *sections,
            workspaces.Section(name="figures", panels=[figures]),
            workspaces.Section(name="samples", panels=[samples]),
        ],
    )


def is_offline() -> bool:
    """Return whether Weights & Biases is offline (``WANDB_MODE=offline`` or ``wandb offline``) or has no API key."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return True
    try:
        # In a terminal, login() would ask for the key that is missing.
        return wandb.api.api_key is None or not wandb.login()
    except wandb.errors.UsageError:  # no key, and no terminal to ask for one
        return True
