"""The typed configuration: one frozen dataclass per Hydra group, all created by :func:`bind`.

Nothing here imports PyTorch, Lightning or transformers before :meth:`RunConfig.check_buildable` is called.
"""

from __future__ import annotations

from mom.config.data import ControlSection
from mom.config.labeled_data import ClassificationConfig, GlueConfig, XsumConfig
from mom.config.nodes import NodeConfig
from mom.config.optimizer import (
    AdafactorConfig,
    MuonConfig,
    OptimizerConfig,
    OptimizerSection,
    optimizer_section,
)
from mom.config.request import RunConfig, bind
from mom.config.section import Section, TaskConfig
from mom.config.tasks import (
    TASKS,
    AnalyzeConfig,
    CompareConfig,
    CostConfig,
    DashboardConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GenerateConfig,
    PrepareConfig,
    PretrainConfig,
    RunsConfig,
    UpcycleConfig,
)
from mom.config.text_data import DataConfig, DataSection
from mom.config.training import TrainerConfig

__all__ = [
    "TASKS",
    "AdafactorConfig",
    "AnalyzeConfig",
    "ClassificationConfig",
    "CompareConfig",
    "ControlSection",
    "CostConfig",
    "DashboardConfig",
    "DataConfig",
    "DataSection",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "GenerateConfig",
    "GlueConfig",
    "MuonConfig",
    "NodeConfig",
    "OptimizerConfig",
    "OptimizerSection",
    "PrepareConfig",
    "PretrainConfig",
    "RunConfig",
    "RunsConfig",
    "Section",
    "TaskConfig",
    "TrainerConfig",
    "UpcycleConfig",
    "XsumConfig",
    "bind",
    "optimizer_section",
]
