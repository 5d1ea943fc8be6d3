"""The house rules that can be read off the source: which room imports which, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mom.model.routers
from mom.model.options import ModelOptions, declared
from mom.model.registry import routers

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN = {name for name, kind in routers.items() if kind.__module__.startswith(mom.model.routers.__name__)}
ORDER = (
    {"errors", "console", "model"},
    {"runs", "metrics"},
    {"config"},
    {"cost", "data", "plots"},
    {"interop", "callbacks", "analysis", "sweeps"},
    {"training"},
    {"evaluation"},
    {"tasks"},
    {"cli"},
)
"""The rooms of ``src/mom``. A room imports those of earlier lines only; ``model`` imports no other room."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
OUTSIDE = {"__init__", "__main__"}
"""Modules that the whole package may import, and the entry point."""


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    src = ROOT / "src"
    tops = {"mom": src, "hydra_plugins": src, "tests": ROOT, "benchmarks": ROOT, "examples": ROOT}
    for top, folder in tops.items():
        for path in sorted((folder / top).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The project's modules that a module imports, also in functions, under TYPE_CHECKING, and by name."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                if f"{base}.{alias.name}" in MODULES:
                    yield f"{base}.{alias.name}"
                elif base in MODULES:
                    yield base
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            texts = (value.value for value in node.args if isinstance(value, ast.Constant))
            yield from (text for text in texts if text in MODULES)


def called(node: ast.Call) -> str:
    """The last part of the name that is called, such as ``import_module``."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


GRAPH = {name: sorted(set(imports(name)) - {name}) for name in MODULES}


def room(name: str) -> str:
    """The room that a module of ``mom`` stands in."""
    return name.split(".")[1] if "." in name else "__init__"


def test_only_the_front_door_is_loose():
    loose = {path.stem for path in (ROOT / "src" / "mom").glob("*.py")}
    assert loose <= {"__init__", "__main__", "cli", "console", "errors"}


def test_every_room_has_its_place_in_the_order():
    rooms = {room(name) for name in MODULES if name.startswith("mom.")}
    assert rooms - OUTSIDE == set(LEVEL)


def circles() -> list[list[str]]:
    """Strongly connected modules, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in GRAPH[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in GRAPH:
        if name not in index:
            visit(name)
    return found


def test_no_circle():
    assert circles() == []


@pytest.mark.parametrize("level", range(len(ORDER)))
def test_rooms_import_earlier_rooms_only(level):
    arrows = [
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        if name.startswith("mom.") and room(name) in ORDER[level]
        for other in others
        if other.startswith("mom.") and room(other) not in OUTSIDE
        if room(other) != room(name) and (room(name) == "model" or LEVEL[room(other)] >= LEVEL[room(name)])
    ]
    assert arrows == []


def test_the_library_does_not_import_its_tests():
    arrows = [
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        if name.split(".")[0] == "mom"
        for other in others
        if other.split(".")[0] != "mom"
    ]
    assert arrows == []


OTHER_MEANINGS = {
    ("config/search.py", "random"),  # a sampler of Optuna
    ("config/tasks.py", "random"),  # tokens to route on
    ("tasks/cost.py", "random"),
    ("callbacks/schedule.py", "linear"),  # a curve
    ("config/optimizer.py", "linear"),  # a learning-rate schedule
}
"""Strings that happen to be the name of a router too."""


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.partition(".")[0] == "mom"))
def test_nothing_is_patched_and_private_names_stay_in_their_file(name):
    nodes = list(ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))))
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = [node.module or "" for node in taken]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not [module for module in modules if module.partition(".")[0] == "unittest"]
    ours = [node for node in taken if (node.module or "").partition(".")[0] == "mom"]
    names = [alias.name for node in ours for alias in node.names]
    assert not [found for found in names if found.startswith("_") and not found.startswith("__")]


def test_router_names_stand_in_their_own_file_only():
    """A router is one class: nothing else in ``src`` asks for one by name, but its default and the authors' loader."""
    allowed = {("model/options.py", declared(ModelOptions)["router"].default)}
    found = {
        (path.relative_to(ROOT / "src").as_posix().removeprefix("mom/"), node.value)
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in BUILT_IN
    }
    own = {(f"model/routers/{name}.py", name) for name in BUILT_IN}
    authors = {("interop/authors.py", name) for name in BUILT_IN}
    assert own <= found
    assert found - own - authors - OTHER_MEANINGS == allowed


def lines_with(*words: str) -> set[str]:
    """Modules of the package, relative to ``src/mom``, whose source has one of the words."""
    return {
        path.relative_to(ROOT / "src" / "mom").as_posix()
        for path in (ROOT / "src" / "mom").rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }


def calls_of_replace() -> set[str]:
    """Modules of the package that call ``Path.replace``, which has one argument; that of a string has two."""
    return {
        path.relative_to(ROOT / "src" / "mom").as_posix()
        for path in (ROOT / "src" / "mom").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and called(node) == "replace"
        if len(node.args) == 1 and not node.keywords
    }


def test_files_are_replaced_and_first_lines_taken_in_one_place():
    # A checkpoint is also kept under a second name, by a link.
    words = ("os.replace(", "os.rename(", ".rename(", "shutil.move(")
    assert lines_with(*words) == {"runs/files.py", "training/checkpoint.py"}
    assert calls_of_replace() == {"training/loggers.py"}  # a method of its own
    # A file of tokens is synced while it is still written to.
    assert lines_with("fsync(") == {"runs/files.py", "data/token_files.py"}
    assert lines_with(".splitlines()[0]", 'split("\\n")[0]', 'partition("\\n")[0]') == set()
