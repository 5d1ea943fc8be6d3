"""The ``data`` group: the kinds of data, and the controls, each with a section of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore

from mom.config.labeled_data import ClassificationConfig, GlueConfig, XsumConfig
from mom.config.section import section_by_name
from mom.config.text_data import DataConfig, DataSection
from mom.errors import unknown_choice


@dataclass(frozen=True, kw_only=True)
class ControlSection(DataSection):
    """A control: examples that are generated from a seed, with a known structure.

    Each control is a subclass in :mod:`mom.data.controls`, or in a plugin, that adds its own options.

    Args:
        name: the control.
        seed: seed of its tables and splits, which does not depend on the run's seed.
    """

    kind: Literal["control"] = "control"
    name: str = ""
    seed: int = 0
    batch_size: int = 256

    def _check(self) -> None:
        super()._check()
        self._range("seed", ge=0, le=2**32 - 1)


DATA: Mapping[str, type[DataSection]] = {
    section.kind: section
    for section in (DataConfig, GlueConfig, ClassificationConfig, XsumConfig, ControlSection)
}
"""Sections by kind of data."""

CONTROLS: dict[str, type[ControlSection]] = {}
"""Sections of the controls by name; :func:`mom.data.controls.register_control` adds to them."""


def data_section(given: Mapping[str, Any]) -> DataSection:
    """Create the section for the kind of data in ``given``, by default text for language modeling.

    Raises:
        UsageError: for an unknown kind or control, or an invalid option.
    """
    if given.get("kind") != ControlSection.kind:
        return section_by_name(DATA, given, "kind", DataConfig.kind)
    name = given.get("name")
    if name not in CONTROLS:
        raise unknown_choice("data.name", name, list(CONTROLS))
    return CONTROLS[name].from_mapping(given)


def store_controls(config_dir: Path) -> None:
    """Make each control without a file in ``config_dir``, such as one of a plugin, a choice ``data=control/<name>``."""
    for name, control in CONTROLS.items():
        if not (config_dir / "data" / "control" / f"{name}.yaml").exists():
            node = dataclasses.asdict(control())
            ConfigStore.instance().store(group="data/control", name=name, node=node, package="data")
