"""Hydra's errors about the command line, told as one line about the option that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mom.config.renamed import RENAMED
from mom.errors import RequestError, UsageError, as_written, nearest, one_of

CONFIG_NAME = "config"

_SEE_HELP = "see python run.py --help"
_SEARCH_PATH = "hydra.searchpath="
_FILE_URL = re.compile(r"file://([^\"]+)")


def composed(config_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration that these overrides ask for, without running anything.

    Raises:
        HydraException: if they cannot be met; :func:`explain` tells what is wrong.
    """
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=list(overrides))


def added_config_dir(folder: str | Path | None) -> list[str]:
    """Return the overrides that add a directory of configuration files, as ``--config-dir`` does; none for None."""
    return [] if folder is None else [f'{_SEARCH_PATH}["file://{Path(folder).resolve()}"]']


def explain(error: Exception, config_dir: Path, overrides: Sequence[str]) -> UsageError:
    """What a failed composition means for the user.

    Args:
        error: what Hydra raised.
        config_dir: the folder of the configuration, to look up which options there are.
        overrides: the command line, without flags.
    """
    if isinstance(error, RequestError):
        return error
    if (slip := _slip_in_form(config_dir, overrides)) is not None:
        return slip
    message = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error, [config_dir, *_added_folders(overrides)])
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.match(r"Ambiguous value for argument '([^=]*)=(.*)'", message):
        return RequestError(
            found[1], found[2], "one value, [a,b] for a list, or the flag -m to run one after another"
        )
    if found := re.match(
        r"(?:Sweep parameters|Sweeping over Hydra's configuration).*?'([^=]*)=(.*)'", message
    ):
        return RequestError(found[1], found[2], "one value, or the flag -m to run one after another")
    if found := re.search(r"Could not (?:override|delete from config\.|delete) ?'([^']*)'", message):
        # With a value that is a mapping, the key that does not exist is inside it; OmegaConf knows which.
        inner = getattr(error.__cause__, "full_key", None) or ""
        key = inner if inner.startswith(f"{found[1]}.") else found[1]
        return _unknown(key, _given(found[1], overrides), config_dir, overrides)
    if found := re.search(r"Error merging override (.*)", message):
        option, _, value = found[1].partition("=")
        return RequestError(option, value, f"a value that fits: {_first_line(error.__cause__ or error)}")
    if found := re.match(r"Could not append to config\. An item is already at '([^']*)'", message):
        return RequestError(
            found[1], _given(found[1], overrides), "the same without the leading +: it exists"
        )
    cause = error.__cause__ if not message and error.__cause__ is not None else error
    return RequestError("request", _first_line(cause), _SEE_HELP)


def is_composition_error(error: BaseException) -> bool:
    """Whether an exception is Hydra's about the command line (some of those are plain ValueErrors)."""
    return isinstance(error, HydraException | OmegaConfBaseException | ValueError)


def _groups(config_dir: Path) -> dict[str, list[str]]:
    """The groups and their choices."""
    folders = sorted(one for one in config_dir.iterdir() if one.is_dir() and one.name != "hydra")
    return {one.name: sorted(file.stem for file in one.glob("*.yaml")) for one in folders}


def _slip_in_form(config_dir: Path, overrides: Sequence[str]) -> RequestError | None:
    """Overrides that Hydra complains about in words that do not name them."""
    groups = _groups(config_dir)
    for one in overrides:
        option, equals, value = one.lstrip("+~").partition("=")
        if equals and not option.strip():
            return RequestError("''", one, f"the name of an option before the =, {_SEE_HELP}")
        if "@" in option and option.partition("@")[0] in groups:
            return RequestError(option, value or "null", f"{option.partition('@')[0]}={value}, without the @")
    return None


def _given(option: str, overrides: Sequence[str]) -> str:
    """The value that the command line gives an option, as it is written there."""
    for one in overrides:
        name, _, value = one.lstrip("+~").partition("=")
        if name == option:
            return value or "null"
    return "null"


def _added_folders(overrides: Sequence[str]) -> list[Path]:
    return [
        Path(found) for one in overrides if one.startswith(_SEARCH_PATH) for found in _FILE_URL.findall(one)
    ]


def _missing_file(error: MissingConfigException, folders: Sequence[Path]) -> RequestError:
    group, slash, choice = (error.missing_cfg_file or "").partition("/")
    if not slash:
        return RequestError("--config-name", group or "null", f"{CONFIG_NAME}, the one there is")
    names = [
        file.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
        if file.parent.name != "shared"
    ]
    return RequestError(group, choice, one_of(choice, sorted(names)))


def _choices_with(option: str, config_dir: Path) -> list[str]:
    """The choices of an option's group, as ``group=choice``, whose files have it or the node that it is of."""
    group, *inner = option.split(".")
    return [
        f"{group}={file.stem}"
        for file in sorted((config_dir / group).glob("*.yaml"))
        if inner and inner[0] in OmegaConf.load(file)
    ]


def _unreadable(override: str) -> RequestError:
    option, equals, value = override.partition("=")
    if not equals:
        return RequestError(option or "''", "no value", f"group=choice or option=value, {_SEE_HELP}")
    return RequestError(
        option,
        value,
        f"a value that can be read; text with more than plain letters, digits, blanks and any of -/._%+*@?| "
        f"wants quotes within the shell's: '{option}=\"…\"'",
    )


def _unknown(option: str, given: str, config_dir: Path, overrides: Sequence[str]) -> UsageError:
    if option in RENAMED:
        return UsageError(f"{option} was renamed to {RENAMED[option]}")
    known = _options(config_dir, overrides)
    parent, _, name = option.rpartition(".")
    siblings = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == parent]
    close = nearest(name, siblings)
    if close is not None:
        full = f"{parent}.{close}" if parent else close
        return RequestError(option, given, f"no such option, did you mean {full}?")
    node = ".".join(option.split(".")[:2])
    is_there = any(one == node or one.startswith(f"{node}.") for one in known)
    if not is_there and (others := _choices_with(option, config_dir)):
        return RequestError(option, given, f"no such option without {' or '.join(others)}")
    # The right name in the wrong place (lr for optimizer.lr), or a slip in the name of the group.
    same = next((one for one in known if one.rpartition(".")[2] == name), None)
    if same is None and not siblings:
        same = nearest(option, known)
    if same is not None:
        return RequestError(option, given, f"no such option, did you mean {same}?")
    place = f"{parent} has" if siblings and parent else "there are"
    listed = siblings if siblings else [one for one in known if "." not in one]
    return RequestError(option, given, f"no such option; {place} {', '.join(listed)}")


def _options(config_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Every option there is, dotted, under the groups that were chosen (or the default ones)."""
    groups = _groups(config_dir)
    chosen = [one for one in overrides if one.partition("=")[0] in groups or one.startswith(_SEARCH_PATH)]
    for attempt in (chosen, []):
        try:
            config = composed(config_dir, attempt)
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        return [*_dotted(plain), "experiment"]
    return []


def _dotted(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return as_written(lines[0] if lines else type(error).__name__)
