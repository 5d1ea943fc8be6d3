"""Compose the configuration, and reduce each of Hydra's errors about the command line to one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mom.config.data import store_controls
from mom.config.model import store_groups
from mom.config.old_schedules import replacement
from mom.config.plugins import load_plugins, plugins_in
from mom.config.renamed import ELSEWHERE, renamed
from mom.config.tasks import TASKS
from mom.errors import UsageError, as_written, either, first_line, nearest, unknown_choice
from mom.model.registry import routers
from mom.runs.program import typed

CONFIG_NAME = "config"

_SEARCH_PATH = "hydra.searchpath="
_FILE_URL = re.compile(r"file://([^\"]+)")


def composed(config_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration for these overrides, without running anything.

    Raises:
        HydraException: if they are invalid; :func:`explain` converts it.
        UsageError: if a plugin cannot be imported.
    """
    prepare_composition(config_dir, overrides)
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=list(overrides))


def help_text(config_dir: Path, overrides: Sequence[str]) -> str:
    """Return the help that ``--help`` prints; Hydra's own way to it lists all groups, which takes a second.

    Raises:
        HydraException: if the overrides are invalid; :func:`explain` converts it.
    """
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        config = compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
    return str(config.hydra.help.template)


def prepare_composition(config_dir: Path, overrides: Sequence[str]) -> None:
    """Import the plugins named on the command line and store the parts of the configuration that have no file."""
    load_plugins(plugins_in(overrides))
    store_groups(config_dir)
    store_controls(config_dir)


def added_config_dir(folder: str | Path | None) -> list[str]:
    """Return the override that adds a directory of configuration files, as ``--config-dir`` does."""
    return [] if folder is None else [f'{_SEARCH_PATH}["file://{Path(folder).resolve()}"]']


def explain(error: Exception, config_dir: Path, overrides: Sequence[str]) -> UsageError:
    """Convert an exception of Hydra to an error about one of the overrides."""
    if isinstance(error, UsageError):
        return error
    if (malformed := _malformed(config_dir, overrides)) is not None:
        return malformed
    message = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error, [config_dir, *_added_folders(overrides)])
    if isinstance(error, OverrideParseException):
        return _unparsable(error.override)
    if found := re.match(r"Ambiguous value for argument '([^=]*)=(.*)'", message):
        return UsageError(
            f"{found[1]} must be a single value, got {found[2]}; write [a,b] for a list, or add the flag -m to run one "
            "job per value"
        )
    if found := re.match(
        r"(?:Sweep parameters|Sweeping over Hydra's configuration).*?'([^=]*)=(.*)'", message
    ):
        return UsageError(
            f"{found[1]} must be a single value, got {found[2]}; add the flag -m to run one job per value"
        )
    if found := re.search(r"Could not (?:override|delete from config\.|delete) ?'([^']*)'", message):
        # The unknown key may be inside a mapping that the override assigns; only OmegaConf reports it then.
        inner = getattr(error.__cause__, "full_key", None) or ""
        key = inner if inner.startswith(f"{found[1]}.") else found[1]
        return _unknown(key, error, config_dir, overrides)
    if found := re.search(r"Error merging override (.*)", message):
        return UsageError(f"cannot apply {found[1]}: {as_written(first_line(error.__cause__ or error))}")
    if found := re.match(r"Could not append to config\. An item is already at '([^']*)'", message):
        return UsageError(f"{found[1]} already exists; omit the + to change it")
    cause = error.__cause__ if not message and error.__cause__ is not None else error
    return UsageError(f"cannot compose the configuration: {as_written(first_line(cause))}")


def is_composition_error(error: BaseException) -> bool:
    """Return whether an exception may be Hydra's about the command line; some of those are plain ValueErrors."""
    return isinstance(error, HydraException | OmegaConfBaseException | ValueError)


def _groups(config_dir: Path) -> dict[str, list[str]]:
    """Return the groups and their choices."""
    folders = sorted(path for path in config_dir.iterdir() if path.is_dir() and path.name != "hydra")
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _malformed(config_dir: Path, overrides: Sequence[str]) -> UsageError | None:
    """Return the error for an override that Hydra rejects without naming it."""
    groups = _groups(config_dir)
    for override in overrides:
        option, equals, value = override.lstrip("+~").partition("=")
        if equals and not option.strip():
            return UsageError(f"cannot parse {override}: no option before the =; see {typed()} --help")
        group, at, _ = option.partition("@")
        if at and group in groups:
            return UsageError(f"unknown option {option}; did you mean {group}={value}?")
    return None


def _added_folders(overrides: Sequence[str]) -> list[Path]:
    """Return the directories that ``--config-dir`` adds."""
    added = [override for override in overrides if override.startswith(_SEARCH_PATH)]
    return [Path(found) for override in added for found in _FILE_URL.findall(override)]


def _missing_file(error: MissingConfigException, folders: Sequence[Path]) -> UsageError:
    group, slash, choice = (error.missing_cfg_file or "").partition("/")
    if not slash:
        return UsageError(f"--config-name must be {CONFIG_NAME}, got {as_written(group or None)}")
    names = [
        file.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
        if file.parent.name != "shared"
    ]
    names += [name for name in routers if group == "router" and name not in names]
    return unknown_choice(group, choice, sorted(names))


def _choices_with(option: str, config_dir: Path) -> list[str]:
    """Return the choices, as ``group=choice``, whose file has an option or its node."""
    group, *inner = option.split(".")
    return [
        f"{group}={file.stem}"
        for file in sorted((config_dir / group).glob("*.yaml"))
        if inner and inner[0] in OmegaConf.load(file)
    ]


def _unparsable(override: str) -> UsageError:
    option, equals, _ = override.partition("=")
    if not equals:
        return UsageError(
            f"{option or repr('')} requires a value: group=choice or option=value, see {typed()} --help"
        )
    return UsageError(
        f"cannot parse {override}; quote text other than letters, digits, spaces, and -/._%+*@?| "
        f"inside the shell's quotes: '{option}=\"…\"'"
    )


def _unknown(option: str, error: Exception, config_dir: Path, overrides: Sequence[str]) -> UsageError:
    if (message := renamed(option)) is not None:
        return UsageError(message)
    if (message := _old_schedule(option, overrides)) is not None:
        return UsageError(message)
    if (message := _option_of_other_task(option)) is not None:
        return UsageError(message)
    unknown = f"unknown option {option}"
    if option in ELSEWHERE:
        return UsageError(f"{unknown}; did you mean {ELSEWHERE[option]}?")
    known = _options(error, option, config_dir, overrides)
    parent, _, name = option.rpartition(".")
    # The name of an option in a group (lr for optimizer.lr), or in the group of another task.
    same = next((other for other in known if other.rpartition(".")[2] == name), None)
    tasks = _tasks_with(name)
    if not parent and (same is not None or tasks):
        meant = same or f"task.{name} with {either(tasks)}"
        return UsageError(f"{unknown}; did you mean {meant}?")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    close = nearest(name, siblings)
    if close is not None:
        return UsageError(
            f"{unknown}; did you mean {parent}.{close}?" if parent else f"{unknown}; did you mean {close}?"
        )
    node = ".".join(option.split(".")[:2])
    exists = any(other == node or other.startswith(f"{node}.") for other in known)
    if not exists and (others := _choices_with(option, config_dir)):
        return UsageError(f"{option} requires {either(others)}")
    # Either the name exists in another group, or the group is misspelled.
    if same is None and not siblings:
        same = nearest(option, known)
    if same is not None:
        return UsageError(f"{unknown}; did you mean {same}?")
    scope = f"the options of {parent}" if siblings and parent else "the options"
    listed = siblings if siblings else [other for other in known if "." not in other]
    return UsageError(f"{unknown}; {scope} are {', '.join(listed)}")


def _option_of_other_task(option: str) -> str | None:
    """Return the error message for an option of tasks that were not chosen; None for other options."""
    group, _, name = option.rpartition(".")
    if group == "task":
        tasks = _tasks_with(name)
    else:
        tasks = [f"task={task}" for task, section in TASKS.items() if option in section.top_level]
    return f"{option} requires {either(tasks)}" if tasks else None


def _tasks_with(name: str) -> list[str]:
    """Return the tasks, as ``task=name``, that have an option of this name."""
    return [f"task={task}" for task, section in TASKS.items() if name in section.__dataclass_fields__]


def _old_schedule(option: str, overrides: Sequence[str]) -> str | None:
    """Return the error message for an option of a callback that became a schedule; None for other options."""
    group, _, rest = option.partition(".")
    node = rest.partition(".")[0]
    prefix = f"{group}.{node}."
    stripped = (override.lstrip("+") for override in overrides)
    given = [override.partition("=") for override in stripped if override.startswith(prefix)]
    options = {name.removeprefix(prefix): yaml.safe_load(value) for name, _, value in given}
    return replacement(node, options) if group == "callbacks" else None


def _options(error: Exception, option: str, config_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Return the dotted names of all options, for the chosen groups or, if they are invalid, the default ones."""
    if (config := _composed_before(error, option, config_dir, overrides)) is None:
        config = _composed_for_groups(config_dir, overrides)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return [*_dotted({name: node for name, node in plain.items() if name != "hydra"}), "experiment"]


def _composed_before(
    error: Exception, option: str, config_dir: Path, overrides: Sequence[str]
) -> DictConfig | None:
    """Return the configuration that misses an unknown option; None if overrides may have changed its siblings."""
    node = getattr(error.__cause__, "parent_node", None)
    nodes = {override.lstrip("+~").partition("=")[0] for override in overrides} - {*_groups(config_dir)}
    if node is None or any(option.startswith(f"{name}.") for name in nodes):
        return None
    root = node._get_root()
    return root if isinstance(root, DictConfig) else None


def _composed_for_groups(config_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of the chosen groups alone or, if they are invalid, of the default ones."""
    groups = _groups(config_dir)
    chosen = [
        override
        for override in overrides
        if override.partition("=")[0] in groups or override.startswith(_SEARCH_PATH)
    ]
    for attempt in (chosen, []):
        with contextlib.suppress(HydraException, OmegaConfBaseException, ValueError):
            return composed(config_dir, attempt)
    return OmegaConf.create()


def _dotted(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
