"""The command line: exit codes, the one line of a wrong request, status, and what is left on disk."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig

from mom.config import RunConfig
from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from tests.helpers.command_line import SMALL, left_behind, status, the_line

pytestmark = pytest.mark.usefixtures("own_place")

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "given",
    [
        "router.temperature=inf",
        "router.balance_coefficient=inf",
        "model.initializer_range=inf",
        "optimizer.weight_decay=nan",
        "optimizer.betas=[inf,0.9]",
        "trainer.gradient_clip_val=inf",
        "data.validation_fraction=-inf",
        "callbacks.gumbel_noise.start=inf",
        "callbacks.checkpoint.save_top_k=inf",
        "+callbacks.device_stats={_target_: lightning.pytorch.callbacks.Timer, duration: nan}",
    ],
)
def test_numbers_that_are_not_finite_are_wrong_requests(
    given: str, launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*SMALL, given) == 2
    line = the_line(capsys)
    assert line.startswith(given.partition("=")[0].removeprefix("+")) and " must be " in line
    assert left_behind() == []


@pytest.mark.parametrize("flag", ["--config-dir=own", "hydra.searchpath=[file://own]"])
def test_a_file_of_users_may_set_hydras_mode(
    flag: str, launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/all.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN}\n")

    assert (
        launch(flag.replace("//own", f"//{Path('own').resolve()}"), "experiment=all", "model.d_model=130,131")
        == 2
    )
    assert the_line(capsys).endswith("got 130")


def test_a_single_request_is_composed_once(
    launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydra.main", lambda **_: pytest.fail("composes twice"))

    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        assert HydraConfig.get().runtime.choices["model"] == "gpt2_tiny"
        assert HydraConfig.get().runtime.output_dir == os.getcwd()
        return {}

    assert launch("run_dir=here", "model=gpt2_tiny", "hydra.mode=RUN", task=task) == 0
    assert launch("model.d_model=130") == 2


@pytest.mark.parametrize("in_a_file", [False, True])
def test_hydras_own_settings_still_hold(
    in_a_file: bool, launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIVEN", raising=False)
    given = ["hydra.output_subdir=records", "+hydra.job.env_set.GIVEN=yes"]
    if in_a_file:
        Path("own/experiment").mkdir(parents=True)
        lines = "{output_subdir: records, job: {env_set: {GIVEN: 'yes'}}}"
        Path("own/experiment/mine.yaml").write_text(f"# @package _global_\nhydra: {lines}\n")
        given = [f"hydra.searchpath=[file://{Path('own').resolve()}]", "experiment=mine"]
    seen: list[str | None] = []

    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        seen.append(os.environ.get("GIVEN"))
        return {}

    assert launch("run_dir=here", *SMALL, *given, task=task) == 0
    assert seen == ["yes"]
    assert Path("records/overrides.yaml").is_file()


def test_a_run_leaves_its_request_its_summary_and_its_status(launch: Callable[..., int]) -> None:
    seen: list[RunConfig] = []

    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        seen.append(config)
        assert status(run.path)["state"] == "running"
        assert os.environ["MOM_RUN_DIR"] == config.run_dir
        return {"val/loss": 2.5}

    assert launch("run_dir=here", "seed=7", *SMALL, task=task) == 0
    assert seen[0].seed == 7
    assert status("here")["state"] == "succeeded"
    assert json.loads(Path("here/summary.json").read_text()) == {"val/loss": 2.5}
    written = yaml.safe_load(Path("here/config.yaml").read_text())
    assert (written["seed"], written["run_dir"], written["model"]["d_model"]) == (7, "here", 16)
    names = ("config.yaml", "provenance.json", "run.log", "status.json", "summary.json")
    assert left_behind() == ["here", *(f"here/{name}" for name in names)]
    provenance = json.loads(Path("here/provenance.json").read_text())
    assert provenance["command"].startswith("python run.py run_dir=here seed=7 ")
    assert "MOM_RUN_DIR" not in os.environ


def test_hydras_name_of_the_run_directory_is_honored(launch: Callable[..., int]) -> None:
    assert launch("hydra.run.dir=here/${seed}", "seed=3", *SMALL) == 0

    assert status("here/3")["state"] == "succeeded"
    assert sorted(path.name for path in Path().iterdir()) == ["here"]


@pytest.mark.parametrize(
    "line", [["seed=1"], ["seed=1", "hydra.run.dir=elsewhere"]], ids=["composed once", "by Hydra"]
)
def test_the_collector_that_the_imports_did_without_runs_again(
    line: list[str], launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[bool] = []
    seen: list[bool] = []

    def task(config: RunConfig, run: RunDirectory) -> dict[str, float]:
        seen.append(gc.isenabled())
        return {"val/loss": 1.0}

    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    gc.disable()
    try:
        assert launch(*line, task=task) == 0
    finally:
        gc.enable()
    assert seen == [True] and frozen == [True]


def test_what_a_run_prints_is_in_its_log(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        print("10%\r100%")
        raise UsageError("no")

    def failing(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        (run.path / "metrics.csv").touch()
        return task(config, run)

    assert launch("run_dir=here", *SMALL, "notes=a, b", task=failing) == 2
    log = Path("here/run.log").read_text().splitlines()
    assert log[0].endswith("  python run.py run_dir=here model.d_model=16 model.num_heads=2 notes=\"'a, b'\"")
    assert log[1:] == ["100%", "error: no"]
    assert launch("run_dir=there", *SMALL, task=task) == 2
    assert not Path("there").exists()


def test_hints_name_what_can_be_used(launch: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("data=glue") == 2
    assert the_line(capsys) == (
        "data.kind must be language_modeling or control for task=pretrain, got glue, which requires task=finetune or "
        "task=evaluate"
    )
    assert launch("task=analyze") == 2
    assert the_line(capsys) == "task=analyze requires init: a checkpoint, an exported folder, or a Hub id"
    checkpoints = Path("outputs/pretrain/x/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").touch()
    assert launch("task=analyze") == 2
    assert the_line(capsys).endswith("Hub id, such as init=outputs/pretrain/x/checkpoints/last.ckpt")


def test_a_run_without_a_name_gets_one(launch: Callable[..., int]) -> None:
    assert launch(*SMALL) == 0

    (folder,) = Path("outputs/pretrain").iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_dir"] == str(folder)
    assert launch("name=mine", *SMALL) == 0
    assert len(list(Path("outputs/pretrain").glob("????-??-??_??-??-??-????-mine"))) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["model.topk=2"], "unknown option model.topk; did you mean model.top_k?"),
        (["model=mom_tny"], "model must be one of "),
        (["task=finetun"], "task must be one of "),
        (["seed=x"], "seed must be an integer, got x"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["model.d_model=15"], "model.d_model must be a multiple of num_heads (4), got 15"),
        (["model.top_k=9"], "model.top_k must be between 1 and 5, "),
        (["data.sequence_length=512"], "data.sequence_length must be at most model.max_positions (256)"),
        (["callbacks.checkpoint.mode=least"], "cannot build callbacks.checkpoint with "),
        (["trainer.max_steps"], "trainer.max_steps requires a value: "),
        (["seed=1,2"], "seed must be a single value, got 1,2; "),
        (["--flag"], "unknown flag --flag; "),
        (["--cfg=everything"], "--cfg/-c: "),
        (["--help", "modl=x"], "unknown option modl; "),
        (["--cfg", "job", "modl=x"], "unknown option modl; "),
        (["--config-name=other"], "--config-name must be config, got other"),
        (["-m", "seed=1,x"], "seed must be an integer, got x"),
        (["-m", "router=gru,mlpp"], "router must be one of "),
        (["run_dir=/dev/null/x"], "cannot write to run_dir /dev/null/x: "),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    assert launch(*line) == 2

    assert the_line(capsys).startswith(message)
    assert left_behind() == []


def refuse(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    raise UsageError("data.path must be an existing\nfile, got x")


def test_a_request_that_the_task_refuses_leaves_nothing(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*SMALL, task=refuse) == 2

    assert the_line(capsys) == "data.path must be an existing file, got x"
    assert left_behind() == []


def test_a_refusal_after_results_keeps_them(launch: Callable[..., int]) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        (run.path / "metrics.csv").touch()
        return refuse(config, run)

    assert launch("run_dir=here", *SMALL, task=task) == 2
    assert status("here")["state"] == "failed"
    assert Path("here/metrics.csv").exists()


def test_debug_shows_the_traceback_too(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("debug=true", *SMALL, task=refuse) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1] == "error: data.path must be an existing file, got x"

    assert launch("debug=true", "model.topk=2") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["gpt2_tiny", "mom_tiny"])
def test_options_without_effect_on_a_plain_model_are_named(
    model: str, launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(f"model={model}", "router.temperature=0.5", "model.top_k=2", "run_dir=here", *SMALL) == 0

    said = (
        "router.temperature=0.5, model.top_k=2 have no effect: the model has no stages (model.num_stages=0)"
    )
    assert (said in capsys.readouterr().out.splitlines()) == (model == "gpt2_tiny")


def test_a_failure_is_recorded_with_its_error(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        raise ZeroDivisionError("no way")

    assert launch("run_dir=here", *SMALL, task=task) == 1
    assert status("here")["error"] == {"type": "ZeroDivisionError", "message": "no way"}
    assert status("here")["state"] == "failed"
    assert "Traceback" in capsys.readouterr().err


def test_a_run_directory_in_use_is_refused_and_left_alone(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory("here").owned():
        Path("here/.last.ckpt.01234567.tmp").touch()
        assert launch("run_dir=here", *SMALL) == 2
    told = the_line(capsys)
    assert told.startswith("run_dir here is in use by process ") and f"process {os.getpid()} on " in told
    assert left_behind() == ["here", "here/.last.ckpt.01234567.tmp"]
    assert launch("run_dir=here", *SMALL) == 0
    assert not Path("here/.last.ckpt.01234567.tmp").exists()


def test_a_folder_with_another_runs_checkpoints_is_refused_unless_resumed(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here/checkpoints").mkdir(parents=True)
    Path("here/checkpoints/last.ckpt").touch()

    assert launch("run_dir=here", *SMALL) == 2
    assert the_line(capsys).startswith("run_dir here already has checkpoints; ")
    assert launch("run_dir=here", "init=some.ckpt", *SMALL) == 2
    assert the_line(capsys).startswith("run_dir here already has checkpoints; ")
    assert launch("run_dir=here", "resume=auto", *SMALL) == 0


def test_a_folder_belongs_to_one_task(launch: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("run_dir=here", *SMALL) == 0
    before = {path: path.read_bytes() for path in Path("here").iterdir()}

    for name in ("export", "evaluate", "analyze"):
        assert launch(f"task={name}", "init=here/checkpoints/last.ckpt", "run_dir=here", *SMALL) == 2
        expected = f"run_dir here holds a run of task=pretrain; choose another directory, such as here-{name}"
        assert the_line(capsys) == expected
    assert {path: path.read_bytes() for path in Path("here").iterdir()} == before
    assert launch("run_dir=here", *SMALL) == 0

    Path("here/config.yaml").write_text("phase: plain\n")
    assert launch("run_dir=here", *SMALL) == 2
    assert the_line(capsys).startswith("run_dir here holds a phase of a run; ")
    Path("here/config.yaml").write_text("a: [1, 2\n")
    assert launch("run_dir=here", *SMALL) == 2
    assert the_line(capsys).startswith("cannot read here/config.yaml: not valid YAML (")


def test_a_full_disk_is_one_line(launch: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        (run.path / "metrics.csv").touch()
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:  # as PyTorch does
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704") from error

    assert launch("run_dir=here", *SMALL, task=task) == 1
    line = the_line(capsys)
    assert line.startswith("No space left on device: here needs more bytes, ")
    assert line.endswith(" are free; free some space and resume with resume=auto run_dir=here")
    assert status("here")["error"]["message"] == line


def test_showing_the_configuration_runs_nothing(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        raise AssertionError("nothing was to run")

    assert launch("model.top_k=1", "--cfg", "job", "seed=3", task=task) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["model"]["top_k"]) == (3, 1)
    assert left_behind() == []


def test_the_script_helps_without_heavy_imports(tmp_path: Path) -> None:
    """Under -X importtime every import is listed, so what `--help` costs can be read off."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "--help", "hydra/help=all"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "Tasks (task=...)" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "omegaconf" in imported
    assert not imported & {"torch", "lightning", "transformers", "pyarrow"}
    assert left_behind() == []


@pytest.mark.parametrize(
    "given", [["model.top_k=99"], ["router.temperature=0"], ["init=missing.ckpt", "task=evaluate"]]
)
def test_a_wrong_option_is_rejected_without_heavy_imports(given: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *given],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    *imports, message = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in imports if line.startswith("import time:")}

    assert done.returncode == 2
    assert message.startswith(f"error: {given[0].partition('=')[0]} must be ")
    assert "mom.model.options" in imported
    assert not imported & {"torch", "lightning", "transformers", "pyarrow"}


def test_the_script_exits_with_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "model.topk=2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 2
    assert done.stderr == "error: unknown option model.topk; did you mean model.top_k?\n"
    assert done.stdout == ""
