"""The command ``mom``: its wheel, from any folder; help, version, completion, and a closed pipe."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mom
from mom import __main__, cli
from mom.__main__ import conf
from mom.runs import program

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment | variables
    )


def test_a_checkout_reads_its_own_configuration() -> None:
    assert conf() == ROOT / "conf"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel that is built from a copy of the sources, without network."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"NO WHEEL WAS BUILT: the build backend needs setuptools 77 or newer, found {version}")
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("src", "conf"):
        shutil.copytree(
            ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder))
    built = run(sys.executable, "-m", "pip", "wheel", *options, str(sources), folder=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_the_configuration_and_the_command(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert files(installed / "mom" / "conf") == files(ROOT / "conf")
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "mom = mom.__main__:main" in entry_points.read_text().splitlines()
    assert not (installed / "conf").exists()


def test_what_the_wheel_installs_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    start = (sys.executable, "-m", "mom")
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("# Mine.\ndefaults: [mom_tiny]\nd_model: 64\n")
    line = ("task=cost", "--config-dir", "own", "model=mine", "model.vocab_size=100", "--cfg", "job")
    shown = run(*start, *line, folder=tmp_path, PYTHONPATH=str(installed))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "d_model: 64" in shown.stdout and "name: cost" in shown.stdout
    refused = run(*start, "model.topk=2", folder=tmp_path, PYTHONPATH=str(installed))
    assert refused.stderr == "error: unknown option model.topk; did you mean model.top_k?\n"
    helped = run(*start, "--help", folder=tmp_path, PYTHONPATH=str(installed))
    assert helped.stdout.startswith("mom: Mixture-of-Modules language models\n")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_the_help_fits_a_terminal_and_is_what_hydra_prints(tmp_path: Path) -> None:
    start = (sys.executable, str(ROOT / "run.py"))
    short = run(*start, "--help", folder=tmp_path, PYTHONPATH=str(ROOT / "src"))
    by_hydra = run(*start, "--help", "seed=0", folder=tmp_path, PYTHONPATH=str(ROOT / "src"))

    assert short.stdout == by_hydra.stdout
    lines = short.stdout.splitlines()
    assert len(lines) <= 40 and all(len(line) <= 80 for line in lines)
    assert sum(line.startswith("  mom ") for line in lines) == 12


def test_the_version_is_that_of_mom(tmp_path: Path) -> None:
    done = run(
        sys.executable, str(ROOT / "run.py"), "--version", folder=tmp_path, PYTHONPATH=str(ROOT / "src")
    )

    assert done.stdout == f"mom {mom.__version__}\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
@pytest.mark.parametrize("line", ["--help", "--help hydra/help=all", "--cfg job"])
def test_a_reader_that_has_read_enough_ends_it_quietly(line: str, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -u '{ROOT / 'run.py'}' {line} | head -1; echo ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", command, folder=tmp_path, PYTHONPATH=str(ROOT / "src"))

    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("141", "0")


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
@pytest.mark.parametrize("start", ["mom", "python run.py"])
def test_the_shell_completes_groups_choices_and_options(start: str, tmp_path: Path) -> None:
    """A command ``mom`` as pip writes it, and Hydra's own script for bash."""
    command = tmp_path / "mom"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom mom.__main__ import main\nsys.exit(main())\n")
    command.chmod(0o755)
    (tmp_path / "run.py").symlink_to(ROOT / "run.py")
    words = f"{start} rout"
    script = f"""
        eval "$({start} -sc install=bash)"
        COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1} COMP_LINE="{words}" COMP_POINT={len(words)}
        hydra_bash_completion
        echo "${{COMPREPLY[@]}}"
        COMP_LINE="{start} model=gpt2_t" {start} -sc query=bash
    """
    path = os.pathsep.join([str(tmp_path), os.path.dirname(sys.executable), os.environ["PATH"]])
    done = run("bash", "-c", script, folder=tmp_path, PATH=path, PYTHONPATH=str(ROOT / "src"))

    assert done.stdout.split() == ["router", "router.", "model=gpt2_tiny"], done.stderr


@pytest.mark.parametrize(
    ("argv", "original", "typed", "recorded"),
    [
        ("run.py", ".venv/bin/python", ".venv/bin/python run.py", ["python", "run.py"]),
        ("../my code/run.py", "python", "python '../my code/run.py'", ["python", "run.py"]),
        ("/site/mom/__main__.py", "python3", "python3 -m mom", ["python", "-m", "mom"]),
        ("/nowhere/bin/mom", "/bin/python", "/nowhere/bin/mom", ["mom"]),
        ("-c", "python", "python -m mom", ["-c"]),
    ],
)
def test_commands_start_as_the_user_started(
    argv: str, original: str, typed: str, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(sys, "orig_argv", [original, argv])

    assert (program.typed(), program.recorded()) == (typed, recorded)
    restarted = [os.path.abspath("run.py")] if argv == "run.py" else None
    assert restarted is None or program.restart() == (sys.executable, *restarted)


def test_the_command_on_the_path_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mom").touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mom"), "seed=1"])
    monkeypatch.setenv("PATH", str(tmp_path))

    assert program.command_line(["run_dir=a b", "prompt=it's", "seed=1"]) == (
        "mom run_dir='a b' prompt=\"it's\" seed=1"
    )
    assert program.restart() == (sys.executable, "-m", "mom")


def test_the_libraries_are_imported_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[bool] = []

    def main(config_dir: Path) -> int:
        during.append(gc.isenabled())
        return 2

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(sys, "argv", ["mom", "seed=1"])

    assert __main__.main() == 2
    assert during == [False] and gc.isenabled()
