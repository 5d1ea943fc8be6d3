"""Agreement and paths, compared with counts token by token."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from mom.callbacks import RoutingPaths
from mom.callbacks import routing_paths as paths
from mom.errors import UsageError
from mom.metrics.routing import agreement_sums, path_keys
from tests.helpers.routing import ROUNDS, STAGES, random_pass
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


def path_of(routing, row: int, column: int) -> tuple:
    """Return the choices of a token step by step, in any order within a step."""
    return tuple(
        tuple(sorted(getattr(record, pool).selected[row, column].tolist()))
        for record in routing
        for pool in ("attention", "ffn")
    )


def test_agreement_is_within_stages_and_over_real_tokens():
    routing, mask = random_pass(0)
    sums = agreement_sums([record.ffn for record in routing], mask, num_stages=STAGES)
    pairs = agreeing = 0
    for row, column in mask.nonzero().tolist():
        for index in range(1, STAGES * ROUNDS):
            if index % ROUNDS:
                first, before = (routing[i].ffn.selected[row, column, 0] for i in (index, index - 1))
                pairs += 1
                agreeing += int(first == before)
    assert (int(sums["pairs"]), int(sums["agreeing"])) == (pairs, agreeing)
    assert 0 < agreeing < pairs


def test_keys_are_the_same_for_the_same_path_only():
    routing, _ = random_pass(3, rows=8, length=40)
    # Few rounds and choices, so that some paths are equal.
    routing = tuple(
        type(record)(*(pool._replace(selected=pool.selected.clamp(max=1)) for pool in record))
        for record in routing[:2]
    )
    keys = path_keys(routing)
    seen: dict[tuple, int] = {}
    for row in range(8):
        for column in range(40):
            path, key = path_of(routing, row, column), int(keys[row, column])
            assert seen.setdefault(path, key) == key
    assert len(set(seen.values())) == len(seen) and 2 < len(seen) < 200


@pytest.mark.parametrize("when", ["validation", "training"])
def test_metrics_of_a_window_equal_a_count_token_by_token(tmp_path, monkeypatch, when):
    monkeypatch.setattr(paths, "THOUSAND", 10)
    batches = [token_batch(seed, rows=2, padded=seed % 4) for seed in range(4)]
    recorder, callback = Recorder(), RoutingPaths(every_n_steps=1)
    stepped: dict[str, float] = {}
    monkeypatch.setattr(callback, "log_step", lambda trainer, module, metrics: stepped.update(metrics))
    trainer = plain_trainer(tmp_path, [callback, recorder], max_steps=1, accumulate_grad_batches=4)
    if when == "training":
        trainer.fit(small_module(), datamodule=FixedBatches(batches, [token_batch(9)]))
        outputs, prefix = recorder.train_outputs, ""
    else:
        trainer.validate(small_module(), datamodule=FixedBatches([], batches), verbose=False)
        outputs, prefix = recorder.validation_outputs, "val/"
    taken = [
        path_of(output["routing"], row, column)
        for output in outputs
        for row, column in output["attention_mask"].nonzero().tolist()
    ]
    counts = [len(set(taken[start : start + 10])) for start in range(0, len(taken) - 9, 10)]
    assert len(taken) % 10 and len(counts) > 3
    found = stepped or trainer.callback_metrics
    wanted = sum(counts) / len(counts)
    assert float(found[f"{prefix}routing/paths_per_thousand_tokens"]) == pytest.approx(wanted)
    same = [
        choices[index] == choices[index - 1]
        for output in outputs
        for choices in torch.stack([record.attention.selected[..., 0] for record in output["routing"]], -1)[
            output["attention_mask"]
        ].tolist()
        for index in range(1, 4)
    ]
    assert float(found[f"{prefix}routing/attention/agreement"]) == pytest.approx(sum(same) / len(same))


def test_less_than_a_thousand_tokens_have_no_paths(tmp_path):
    trainer = plain_trainer(tmp_path, [RoutingPaths()])
    trainer.validate(small_module(), datamodule=FixedBatches([], [token_batch(0)]), verbose=False)
    assert "val/routing/ffn/agreement" in trainer.callback_metrics
    assert "val/routing/paths_per_thousand_tokens" not in trainer.callback_metrics


def test_a_logged_step_in_each_interval_is_measured(tmp_path):
    recorder = Recorder()
    options = {"max_steps": 11, "log_every_n_steps": 2, "limit_val_batches": 0}
    callback = RoutingPaths(every_n_steps=3)
    due: list[int] = []
    logger = CSVLogger(tmp_path, name="", version="")
    measure = callback.measure
    callback.measure = lambda module, outputs: due.append(module.global_step) or measure(module, outputs)
    trainer = plain_trainer(tmp_path, [callback, recorder], **options | {"logger": logger})
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(seed) for seed in range(11)], []))
    assert due == [4, 6, 10, 11]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged_steps = [int(row["step"]) for row in csv.DictReader(file) if row["routing/ffn/agreement"]]
    assert logged_steps == [3, 5, 9, 10], "Lightning counts from 0, and no step is repeated"


def test_an_interval_of_0_is_rejected():
    with pytest.raises(UsageError, match=r"every_n_steps must be .*, got 0"):
        RoutingPaths(every_n_steps=0)


def test_a_validation_measures_the_dependence_on_the_token(tmp_path):
    """A router whose choice is fixed by the token ID depends on it alone."""
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [RoutingPaths(), recorder], max_steps=1, val_check_interval=1)
    module = small_module(router="random", top_k=1)
    validation = [token_batch(seed, padded=seed % 3) for seed in range(20, 26)]
    trainer.fit(module, datamodule=FixedBatches([token_batch(0)], validation))
    for pool in ("attention", "ffn"):
        assert trainer.callback_metrics[f"val/routing/{pool}/token_dependence"] == pytest.approx(1)
        assert f"routing/{pool}/token_dependence" not in trainer.callback_metrics
