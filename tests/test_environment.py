"""Environments: lock, conda file, container, devcontainer, and Slurm script agree with each other and are linted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = [ROOT / "cluster" / "train.sbatch", ROOT / ".ci" / "run"]


def locked() -> dict[str, str]:
    """Return the locked version of each package by its normalized name."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]
    found = [re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", pin) for pin in pins]
    assert all(found), [pin for pin, match in zip(pins, found, strict=True) if not match]
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


def test_the_lock_has_every_dependency_in_a_version_that_is_allowed() -> None:
    versions = locked()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in versions, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(versions[name], prereleases=True), (
            str(requirement),
            versions[name],
        )


def test_conda_container_and_devcontainer_use_the_lock_and_a_supported_python() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (from_pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    assert "-r requirements.lock" in from_pip and "-e ." in from_pip
    container = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "pip install --no-cache-dir -r requirements.lock" in container
    devcontainer = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert devcontainer["postCreateCommand"] == "make install"
    pythons = [
        next(entry for entry in conda if isinstance(entry, str) and entry.startswith("python=")).partition(
            "="
        )[2],
        re.findall(r"^FROM python:([\d.]+)", container, re.MULTILINE)[0],
        devcontainer["image"].rpartition(":")[2],
    ]
    assert len(set(pythons)) == 1 and supported.contains(pythons[0])


def test_the_container_copies_what_exists_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)


def test_ci_lints_builds_and_starts_the_container() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [step["run"] for step in jobs["container"]["steps"] if "run" in step]

    assert [line.split()[1] for line in steps] == ["run", "build", "run"]
    assert "hadolint < Dockerfile" in steps[0] and steps[2] == "docker run --rm mom --version"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("linter", ["shellcheck", "hadolint"])
def test_linters_find_nothing(linter: str) -> None:
    program = shutil.which(linter, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{linter} is not installed, so its files are NOT LINTED")
    files = SCRIPTS if linter == "shellcheck" else [ROOT / "Dockerfile"]
    subprocess.run([program, *map(str, files)], check=True)


def test_the_slurm_script_starts_one_process_per_task_and_goes_back_to_the_queue(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name, code in (("srun", 143), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\nexit {code}\n')
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
    }
    done = subprocess.run(["bash", str(SCRIPTS[0]), "seed=1"], env=environment, check=False)
    assert done.returncode == 143
    started, queued = log.read_text().splitlines()
    assert started == (
        "srun --kill-on-bad-exit=1 mom trainer=ddp trainer.num_nodes=2 trainer.devices=8 trainer.accelerator=gpu "
        "run_dir=outputs/slurm/12 resume=auto seed=1"
    )
    assert queued == "scontrol requeue 12"
