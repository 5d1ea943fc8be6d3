"""Loggers write to the run directory, under names that stay the same after a resume."""

from __future__ import annotations

import csv
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from mom.config import NodeConfig
from mom.errors import UsageError
from mom.training import loggers
from mom.training.loggers import build_loggers, finish_loggers

CSV = NodeConfig("logger.csv", "lightning.pytorch.loggers.CSVLogger", {"name": "", "version": ""})


def build(node: NodeConfig, folder: Path, **options):
    (logger,) = build_loggers(
        [node], folder, run="2026-01-01_abcd", phase="mom", hyperparameters={"seed": 3}, **options
    )
    return logger


def rows_of(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_csv_starts_a_new_curve_unless_resumed(tmp_path):
    logger = build(CSV, tmp_path)
    for step in range(4):
        logger.log_metrics({"a": step / 3, **({"b": 1.0} if step == 2 else {})}, step)
    logger.save()
    before = rows_of(tmp_path)

    logger = build(CSV, tmp_path, steps_before=3)
    assert rows_of(tmp_path) == before[:4]
    logger.log_metrics({"a": 7.0}, 3)
    logger.save()
    assert rows_of(tmp_path) == [*before[:4], "7.0,,3"]

    logger = build(CSV, tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    assert rows_of(tmp_path) == ["a,step", "1.0,0"]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("when", ["header", "new column", "row after a new column", "row"])
def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Lightning saves once more when training ends, after the disk was full."""
    logger = build(CSV, tmp_path)
    if when != "header":
        logger.log_metrics({"a": 1.0}, 0)
        logger.save()
    logger.log_metrics({"a": 2.0, **({"b": 3.0} if "new column" in when else {})}, 1)

    def full(*_: object) -> None:
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("2.0")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if when == "new column" else "csv.DictWriter.writerows", full)
        if when == "row after a new column":
            patch.setattr(loggers._MetricsWriter, "replace", _write_anew)
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    logger.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    first = [] if when == "header" else [{"a": "1.0", "step": "0"}]
    added = {"b": "3.0"} if "new column" in when else {}
    assert rows == [*first, {"a": "2.0", **added, "step": "1"}]


def _write_anew(writer: loggers._MetricsWriter, rows: list[dict[str, str]]) -> None:
    """Write rows without the csv module, which fails here."""
    lines = [writer.metrics_keys, *([row.get(name, "") for name in writer.metrics_keys] for row in rows)]
    text = "".join(",".join(cells) + "\r\n" for cells in lines)
    Path(writer.metrics_file_path).write_text(text, encoding="utf-8", newline="")


@pytest.mark.parametrize("content", [b"a,stop\n1,2\n", b"a,step\n1,2,3\n", b"a,step\n\xff,1\n"])
def test_a_damaged_curve_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(
        UsageError, match=r"^cannot continue .*metrics.csv: .*; remove it to start a new one$"
    ):
        build(CSV, tmp_path, steps_before=3)


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_half_a_line_of_a_curve_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b,step\n1.0,2.0,0\n1.0,2.0")
    build(CSV, tmp_path, steps_before=3)
    assert rows_of(tmp_path) == ["a,b,step", "1.0,2.0,0"]


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
@pytest.mark.parametrize("given", [{"name": "../../x"}, {"version": "../../../x"}, {"name": "/tmp/x"}])
def test_no_logger_writes_outside_of_its_directory(tmp_path, kind, given):
    node = NodeConfig("logger.one", f"lightning.pytorch.loggers.{kind}", {"name": "", "version": "", **given})
    with pytest.raises(UsageError, match=r"^logger.one.name and .version must be folders within .*, got "):
        build(node, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_writes_into_the_directory_with_the_configuration(tmp_path):
    arguments = {"name": "tensorboard", "version": ""}
    logger = build(NodeConfig("logger.t", "lightning.pytorch.loggers.TensorBoardLogger", arguments), tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents*"))
    assert "seed: 3" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.parametrize("given", [{"project": "p"}, {"project": "p", "name": "mine", "id": "abc"}])
def test_wandb_has_one_run_per_phase_with_an_id_of_ours(tmp_path, monkeypatch, given):
    from lightning.pytorch.loggers import WandbLogger

    made: dict = {}
    monkeypatch.setattr(WandbLogger, "__init__", lambda self, **options: made.update(options))
    monkeypatch.setattr(WandbLogger, "log_hyperparams", lambda self, params: made.update(logged=params))
    build(NodeConfig("logger.w", "lightning.pytorch.loggers.WandbLogger", given), tmp_path)
    assert made["project"] == "p"
    first = made["id"]
    assert first == given.get("id") or re.fullmatch("2026-01-01_abcd-mom-[0-9a-f]{8}", first)
    assert made["name"] == given.get("name", "2026-01-01_abcd-mom")
    assert (made["group"], made["resume"]) == ("2026-01-01_abcd", "allow")
    assert made["save_dir"] == str(tmp_path)
    assert made["logged"] == {"seed": 3}
    node = NodeConfig("logger.w", "lightning.pytorch.loggers.WandbLogger", given)
    build(node, tmp_path, steps_before=4)
    assert made["id"] == first  # a resumed phase continues the run
    build(node, tmp_path)
    assert (made["id"] == first) == ("id" in given)  # another run in the same folder


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline wandb run: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32_768 - at % 32_768 < 7:  # a record's header is never split between two blocks
            at += 32_768 - at % 32_768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_a_resumed_run_goes_on_as_the_same_one_in_wandb_itself(tmp_path, monkeypatch, capfd):
    wandb.teardown()  # or the service of an earlier test ignores the environment
    capfd.readouterr()
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    monkeypatch.chdir(tmp_path)
    node = NodeConfig("logger.w", "lightning.pytorch.loggers.WandbLogger", {"project": "p", "offline": True})
    for steps_before in (0, 2):
        about = {"tags": ["long"], "notes": None}
        logger = build(node, tmp_path, steps_before=steps_before, about=about)
        for step in (steps_before, steps_before + 1):
            logger.log_metrics({"a": step / 3, **{f"of_many/{number}": 1.0 for number in range(150)}}, step)
        finish_loggers([logger], 0)
        # Folders are named by the second, so both starts could get the same one.
        (tmp_path / "wandb").rename(tmp_path / f"pieces-{steps_before}")
    wandb.teardown()  # waits until its service has written everything
    printed = "".join(capfd.readouterr()).splitlines()
    assert [line.partition("/offline-run-")[0] for line in printed] == [
        "Weights & Biases: upload with wandb sync wandb"
    ] * 2
    identity = (tmp_path / "wandb_run_id").read_text().strip()
    found: list[tuple[set[str], list[float]]] = []
    for path in sorted(tmp_path.glob("pieces-*/offline-run-*/*.wandb")):
        records = list(wandb_records(path))
        rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
        values = [json.loads(item.value_json) for row in rows for item in row if "a" in item.nested_key]
        runs = {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}
        tags = [list(record.run.tags) for record in records if record.WhichOneof("record_type") == "run"]
        assert ["long"] in tags
        found.append((runs, values))
    assert found == [({identity}, [0, 1 / 3]), ({identity}, [2 / 3, 1])]


def test_the_id_under_the_agent_of_a_wandb_sweep_is_the_one_wandb_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv("WANDB_SILENT", "true")
    node = NodeConfig("logger.w", "lightning.pytorch.loggers.WandbLogger", {"project": "p", "offline": True})
    logger = build(node, tmp_path)
    assert (tmp_path / "wandb_run_id").read_text().strip() == logger.experiment.id == "trial7"
    finish_loggers([logger], 0)
