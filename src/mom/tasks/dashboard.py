"""A workspace for Weights & Biases: the metrics in sections as they are named, the figures, the samples."""

from __future__ import annotations

from typing import Any

from mom.config import DashboardConfig, RunConfig
from mom.errors import RequestError
from mom.metrics.names import FIGURES, SAMPLES, SECTIONS
from mom.runs.directory import RunDirectory
from mom.runs.files import write_json_atomic

FILE = "workspace.json"
STEP = "trainer/global_step"
OPEN = ("val", "train", "depth")


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Write the workspace's specification, and save it at Weights & Biases unless that is offline.

    Offline is: ``WANDB_MODE=offline`` (or ``wandb offline``), or no API key.

    Args:
        config: the request.
        run: the run's directory; the specification is its ``workspace.json``.

    Returns:
        ``sections`` and ``panels``, their numbers, and ``url``: where the workspace is, or null.

    Raises:
        RequestError: the package ``wandb-workspaces`` is not installed, or ``task.entity`` cannot be known.
    """
    task = config.task
    assert isinstance(task, DashboardConfig)
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as reason:
        raise RequestError(
            "task", "dashboard", "pip install 'mixture-of-modules[dashboard]' first"
        ) from reason
    offline = is_offline()
    entity = task.entity
    if entity is None and not offline:
        import wandb

        entity = wandb.Api().default_entity
        if entity is None:
            raise RequestError("task.entity", "null", "a user or team of Weights & Biases")
    workspace = build_workspace(entity or "", task.project, task.title)
    # The library's own form of it, which is what save() sends.
    specification = workspace._to_model().model_dump(mode="json", by_alias=True)
    if run.writes:
        write_json_atomic(run.path / FILE, specification)
    print(f"Written to {run.path / FILE}")
    if offline:
        print("Weights & Biases is offline: nothing was sent. Log in (wandb login) and run this again.")
        url = None
    else:
        workspace.save()
        url = workspace.url
        print(f"Saved as {url}")
    sections = workspace.sections
    return {"sections": len(sections), "panels": sum(len(one.panels) for one in sections), "url": url}


def build_workspace(entity: str, project: str, title: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``: a section for each group of metrics, a panel for each metric.

    Args:
        entity: the user or team.
        project: the project, as in ``logger.wandb.project``.
        title: the workspace's name.
    """
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
    """Whether Weights & Biases is told to stay offline, or knows no API key."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return True
    try:
        return not wandb.login()
    except wandb.errors.UsageError:  # no key, and nobody to ask
        return True
