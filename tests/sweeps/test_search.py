"""Searches with real processes: trials that count across restarts, are pruned, fail, or are killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mom.config.search import SearchConfig
from mom.errors import UsageError
from mom.sweeps import search
from mom.sweeps.pruning import PruneTrial
from mom.sweeps.study import JOURNAL, PRUNED_AT, open_study, open_trial, search_space
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch
from tests.sweeps.start import start_and_wait_until_blocked

Launch = Callable[..., int]
LINE = ("-m", "search=tpe", "hydra.sweep.dir=s", "optimizer.lr=tag(log,interval(1e-5,1e-1))")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("a=interval(0.1,1)", FloatDistribution(0.1, 1)),
        ("a=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1, log=True)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=tag(log,int(interval(1,8)))", IntDistribution(1, 8, log=True)),
        ("a=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("a=gru,mlp", CategoricalDistribution(["gru", "mlp"])),
        ("a=1,null,[1,2]", CategoricalDistribution(["1", "null", "[1,2]"])),
    ],
)
def test_what_is_drawn_follows_hydras_grammar(override: str, wanted: BaseDistribution) -> None:
    assert search_space([override, "b=1"]) == ({"a": wanted}, ["b=1"])


def test_trials_of_all_starts_count_and_the_bad_ones_are_pruned(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("search.num_trials=2", "search.startup_trials=1", "seed=5")
    assert launch(*LINE, *few) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("s").glob("*/status.json")}
    assert len(before) == 2
    capsys.readouterr()
    assert launch(*LINE, "search.num_trials=5", *few[1:]) == 0

    printed = capsys.readouterr().out
    study = open_study(Path("s") / JOURNAL, SearchConfig(startup_trials=1))
    trials = study.get_trials()
    assert len(trials) == 5
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5
    # The median rule by hand: a trial is pruned if it is worse than the median of previously completed trials.
    completed: list[float] = []
    for trial in trials:
        loss = trial.intermediate_values[1]
        worse = bool(completed) and loss > statistics.median(completed)
        assert trial.state.name == ("PRUNED" if worse else "COMPLETE")
        completed += [] if worse else [loss]
        state = json.loads(Path(f"s/{trial.number}/status.json").read_text())["state"]
        assert state == ("interrupted" if worse else "succeeded")
        assert trial.number < 2 or (f"s/{trial.number}: pruned\n" in printed) == worse
    best = study.best_trial
    assert re.search(
        rf"^Best trial: .*program.py seed=5 optimizer.lr={best.params['optimizer.lr']}$", printed, re.M
    )
    assert re.search(rf"│ +{best.value:.4f} │ .* │ s/{best.number} +│", printed)


def test_a_killed_search_resumes_its_trial(launch: Launch) -> None:
    line = (*LINE, "search.num_trials=1", "seed=8")
    sweep, job = start_and_wait_until_blocked(*line)
    sweep.kill()
    sweep.wait()
    os.kill(job, signal.SIGKILL)

    assert launch(*line) == 0
    (trial,) = open_study(Path("s") / JOURNAL, SearchConfig()).get_trials()
    assert trial.value == 8
    assert json.loads(Path("s/0/summary.json").read_text())["resumed"]


def test_a_failed_trial_is_reported(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(*LINE, "search.num_trials=1", "seed=2") == 1

    printed = capsys.readouterr().out
    assert "1 trials: 1 fail" in printed
    assert "trial 0: ZeroDivisionError: no way" in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-m", "search=tpe", "seed=1"], "a search requires an option to sample, "),
        (["-m", "search=tpe", "optimizer.lr=interval(1,0)"], "cannot sample optimizer.lr=interval(1,0): "),
        (["-m", "search=tpe", "optimizer.lr=tag(log,interval(0,1))"], "cannot sample optimizer.lr="),
        (
            ["-m", "search=tpe", "model.d_model=15,17"],
            "model.d_model must be a multiple of num_heads (4), got 1",
        ),
        (
            ["-m", "search=tpe", "search.num_trials=0", "seed=1,2"],
            "search.num_trials must be at least 1, got 0",
        ),
        (["search=tpe"], "search=tpe requires the flag -m"),
        (["callbacks@x=none"], "unknown option callbacks@x; did you mean callbacks=none?"),
        (
            ["+callbacks.prune={_target_: mom.sweeps.pruning.PruneTrial, journal: 3, trial: 1}"],
            "callbacks.prune.journal must be a string, got 3",
        ),
    ],
)
def test_a_wrong_search_is_one_line_and_starts_nothing(
    launch: Launch, capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    assert launch(*line) == 2

    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {message}")
    assert not any(Path().iterdir())


def test_without_optuna_a_search_is_rejected(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)

    assert launch(*LINE) == 2
    assert "pip install 'mixture-of-modules[sweep]'" in capsys.readouterr().err
    assert not any(Path().iterdir())


def test_a_trial_reports_its_validations_and_stops_where_the_others_were_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / JOURNAL
    study = open_study(journal, SearchConfig(startup_trials=1))
    good = study.ask()
    for step in (2, 4, 6):
        good.report(1.0 if step > 2 else 100.0, step)
    study.tell(good, 1.0)
    bad = study.ask()
    monkeypatch.setenv("MOM_RUN_DIR", str(tmp_path))
    batches = [token_batch(seed) for seed in range(6)]
    module = small_module()
    callback = PruneTrial(str(journal), bad.number)
    trainer = plain_trainer(
        tmp_path, [callback], max_steps=6, val_check_interval=2, check_val_every_n_epoch=None
    )
    with pytest.raises(SystemExit):  # Lightning's conversion of an interruption
        trainer.fit(module, datamodule=FixedBatches(batches, batches[:1]))

    assert trainer.global_step == 4
    found = study.get_trials()[bad.number]
    assert (list(found.intermediate_values), found.user_attrs[PRUNED_AT]) == ([2, 4], 4)
    # The search ignores a phase in a subdirectory of the run.
    inner = plain_trainer(tmp_path / "plain", [PruneTrial(str(journal), bad.number)], max_steps=2)
    inner.fit(small_module(), datamodule=FixedBatches(batches, batches[:1]))
    assert list(study.get_trials()[bad.number].intermediate_values) == [2, 4]


def test_a_missing_trial_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^callbacks.prune.journal must be "):
        open_trial(tmp_path / "x", 0)
    open_study(tmp_path / JOURNAL, SearchConfig())
    with pytest.raises(UsageError, match=r"^callbacks.prune.trial must be below 0, .*, got 0$"):
        open_trial(tmp_path / JOURNAL, 0)


@pytest.mark.parametrize("left", [-1, -30], ids=["its line end", "half a line"])
def test_a_journal_that_a_full_disk_cut_off_is_gone_on_with(launch: Launch, left: int) -> None:
    assert launch(*LINE, "search.num_trials=2", "seed=5") == 0
    journal = Path("s") / JOURNAL
    journal.write_bytes(journal.read_bytes()[:left])

    assert launch(*LINE, "search.num_trials=3", "seed=5") == 0
    assert [trial.state.name for trial in open_study(journal, SearchConfig()).get_trials()] == [
        "COMPLETE"
    ] * 3


def test_a_damaged_journal_is_one_line(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(*LINE, "search.num_trials=1", "seed=5") == 0
    journal = Path("s") / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b'{"op_code": 4, "wor\0ker\n', *lines[2:]]))
    capsys.readouterr()

    assert launch(*LINE, "search.num_trials=2", "seed=5") == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: cannot read s/search.journal: line 3 is damaged (")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["search.mode=max"], "search.mode must be min as in s/search.journal, got max"),
        (["search.metric=val/depth"], "search.metric must be val/loss as in s/search.journal, got val/depth"),
        (
            ["trainer.max_steps=7"],
            "the trials in s/search.journal cannot be compared with those of another request, which differs in "
            "trainer.max_steps=7; choose another hydra.sweep.dir",
        ),
        (["optimizer.lr=0.1,0.2"], "optimizer.lr must be sampled as in s/search.journal; choose another "),
    ],
)
def test_a_search_of_another_kind_does_not_go_on_with_the_trials(
    launch: Launch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert launch(*LINE, "search.num_trials=1", "seed=5") == 0
    kept = (Path("s") / JOURNAL).read_bytes()
    capsys.readouterr()

    line = [*LINE[:-1], *given] if given[0].startswith("optimizer.lr") else [*LINE, *given]
    assert launch(*line, "search.num_trials=2", "seed=5", "tags=[again]") == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {message}")
    assert (Path("s") / JOURNAL).read_bytes().startswith(kept)
    assert not Path("s/1").exists()


def test_a_second_search_in_the_directory_does_not_start(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (*LINE, "search.num_trials=1", "seed=8")
    sweep, job = start_and_wait_until_blocked(*line)
    try:
        assert launch(*line) == 2
    finally:
        sweep.kill()
        sweep.wait()
        os.kill(job, signal.SIGKILL)
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: hydra.sweep.dir s is in use by process {sweep.pid} on ")
