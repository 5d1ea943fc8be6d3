"""The running program, as a command that users can type and as one that starts it again."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

_MODULE = "mom"


def typed() -> str:
    """Return how the user started the program: ``mom``, ``python run.py``, or ``python -m mom``."""
    program = Path(sys.argv[0])
    if program.suffix != ".py":  # the installed command
        if program.name in ("", "-c"):
            return f"python -m {_MODULE}"
        found = shutil.which(program.name)
        here = found is not None and Path(found).resolve() == program.resolve()
        return program.stem if here else shlex.quote(str(program))
    python = shlex.quote(sys.orig_argv[0] if sys.orig_argv else sys.executable)
    return (
        f"{python} -m {_MODULE}" if program.name == "__main__.py" else f"{python} {shlex.quote(sys.argv[0])}"
    )


def recorded() -> list[str]:
    """Return the same, without the path of Python or of the installed command, for records."""
    program = Path(sys.argv[0])
    if program.suffix != ".py":
        return [program.stem]
    return ["python", *(["-m", _MODULE] if program.name == "__main__.py" else [program.name])]


def restart() -> tuple[str, ...]:
    """Return the command that starts the program again, in a process of its own, from the same folder."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.name != "__main__.py"
    return (sys.executable, *([os.path.abspath(program)] if is_script else ["-m", _MODULE]))


def config_dir_flags() -> tuple[str, ...]:
    """Return the flag ``--config-dir`` of the running program, if it has one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    added = parser.parse_known_args(sys.argv[1:])[0].config_dir
    return ("--config-dir", added) if added else ()


def command_line(overrides: Iterable[str]) -> str:
    """Return a command that can be pasted into a shell."""
    return " ".join([typed(), *map(_quoted, overrides)])


def recorded_command() -> str:
    """Return the running program's command for records."""
    return " ".join([*map(shlex.quote, recorded()), *map(_quoted, sys.argv[1:])])


def _quoted(override: str) -> str:
    """Quote an override for the shell, its value only if the name needs no quotes: ``prompt="a b"``."""
    name, equals, value = override.partition("=")
    if equals and shlex.quote(name) == name:
        return f"{name}={_for_shell(value)}"
    return _for_shell(override)


def _for_shell(text: str) -> str:
    is_legible = "'" in text and not any(character in text for character in '"$`\\!')
    return f'"{text}"' if is_legible else shlex.quote(text)
