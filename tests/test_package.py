"""The package's front door."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import mom

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"


def test_importing_mom_imports_no_heavy_library() -> None:
    code = (
        "import sys, mom; print(sorted({'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_public_names_load_on_first_use() -> None:
    from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification

    assert mom.MoMConfig is MoMConfig
    assert mom.MoMForCausalLM is MoMForCausalLM
    assert mom.MoMForSequenceClassification is MoMForSequenceClassification
    assert set(mom.__all__) <= set(dir(mom))


def test_the_version_is_the_installed_one() -> None:
    assert mom.__version__[0].isdigit()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        mom.Nothing  # noqa: B018


def test_no_module_needs_what_only_posix_has() -> None:
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
    found = {
        f"{path.relative_to(SOURCES)} imports {name}"
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
        if name in posix
    }
    assert not found


def test_hooks_have_the_locked_versions() -> None:
    locked = set((ROOT / "requirements.lock").read_text().splitlines())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {package for hook in hooks for package in hook["additional_dependencies"]} <= locked


def test_every_file_that_is_no_python_is_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "mom"
    ]
    package = SOURCES / "mom"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}

    assert others == packed
    assert {path.name for path in packed} >= {"template.html", "viewer.js", "style.css", "py.typed"}
