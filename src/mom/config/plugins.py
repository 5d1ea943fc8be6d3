"""Plugins: modules that register routers, module kinds, and controls, imported before a request is checked.

The request names them (``plugins: [my_package.my_module]``), or an installed package declares them as entry points of
the group ``mom.plugins``. A checkpoint or an exported folder cannot name code to import. The controls of the package
itself register in the same way.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from mom.errors import UsageError, as_written, first_line

OPTION = "plugins"
ENTRY_POINTS = "mom.plugins"
"""Group of the entry points that installed packages declare."""
BUILT_IN = ("mom.data.controls",)
"""Modules of this package that register themselves like plugins, because configuration does not import data."""


_loaded: set[str] = set()


@functools.cache
def entry_points(group: str) -> metadata.EntryPoints:
    """Return the entry points of a group; a process reads those of its installed packages once."""
    return metadata.entry_points(group=group)


def load_plugins(names: Iterable[str]) -> None:
    """Import the package's own controls, the plugins of installed packages, then these modules.

    Raises:
        UsageError: if one cannot be imported.
    """
    for name in BUILT_IN:
        importlib.import_module(name)
    for point in entry_points(group=ENTRY_POINTS):
        _load(f"{point.value} (entry point {point.name})", point.load)
        _loaded.add(point.module)
    for name in names:
        _load(name, functools.partial(importlib.import_module, name))
        _loaded.add(name)


def is_plugin(module: str) -> bool:
    """Return whether a module is a plugin that this process has imported, or within one."""
    return any(module == plugin or module.startswith(f"{plugin}.") for plugin in _loaded)


def _load(name: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except Exception as reason:  # importing a plugin can raise anything
        raise UsageError(
            f"cannot import plugin {name or repr('')}: {as_written(first_line(reason))}"
        ) from reason


def plugins_in(overrides: Sequence[str]) -> list[str]:
    """Return the plugins that the command line names, including every choice of a sweep over plugins."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return []  # the error is reported when the configuration is composed
    values: list[Any] = []
    for override in parsed:
        if override.get_key_element().lstrip("+~") == OPTION:
            swept = override.is_sweep_override() and override.is_discrete_sweep()
            values += list(override.sweep_iterator()) if swept else [override.value()]
    return [str(name) for value in values if isinstance(value, list) for name in value]
