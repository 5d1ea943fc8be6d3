"""The figures' sums against a count over tokens, and where the figures go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mom.callbacks import RoutingFigures, RoutingStatistics
from mom.callbacks import figures as callback
from mom.metrics.depth import depth_bins, moments_by, token_depths
from mom.metrics.routing import pool_sums
from mom.plots import depth as depth_figures
from mom.plots import routing as figures
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch
from tests.metrics.test_routing import (
    FIXED,
    N_FFN,
    ROUNDS,
    STAGES,
    random_pass,
    slow_depths,
)

ALL = [
    "depth_by_frequency",
    "depth_by_loss",
    "depth_distribution",
    "module_flow",
    "module_use",
    "use_over_time",
]


def depths_of(routing):
    return token_depths(routing, fixed_depth=FIXED)


def keep(monkeypatch, drawn: dict, name: str) -> None:
    """Let a drawing function also keep what it was given."""
    module = depth_figures if name.startswith("depth_") else figures
    draw = getattr(module, name)

    def drawing(*given, **options):
        drawn[name] = given
        return draw(*given, **options)

    monkeypatch.setattr(module, name, drawing)


def test_use_and_flow_equal_a_count_token_by_token():
    routing, mask = random_pass(0)
    sums = pool_sums([one.ffn for one in routing], mask)
    use = np.zeros((len(routing), N_FFN + 1))
    flow = np.zeros((len(routing) - 1, N_FFN + 1, N_FFN + 1))
    for row, column in mask.nonzero().tolist():
        path = [one.ffn.selected[row, column].tolist() for one in routing]
        for index, places in enumerate(path):
            for slot in places:
                use[index, slot] += 1
            if index:
                flow[index - 1, path[index - 1][0], places[0]] += 1
    np.testing.assert_array_equal(sums["use"], use)
    np.testing.assert_array_equal(sums["flow"], flow)


def test_depths_of_tokens_and_their_sums():
    routing, mask = random_pass(1)
    depths, slow = depths_of(routing), slow_depths([(routing, mask)])
    for name, one in depths.items():
        np.testing.assert_allclose(one[mask], slow[name], rtol=1e-6)
    graph = FIXED + STAGES * ROUNDS
    bins = depth_bins(depths, mask, fixed_depth=FIXED, graph_depth=graph)
    counts = np.bincount(np.round((np.array(slow["effective"]) - FIXED) * 2).astype(int), minlength=13)
    np.testing.assert_array_equal(bins["effective"], counts)
    assert int(bins["weighted"].sum()) == int(mask.sum())
    place = torch.randint(4, mask.shape, generator=torch.Generator().manual_seed(0))
    sums = moments_by(place, depths, mask, number=4)
    own = depths["weighted"][mask & (place == 2)].double()
    assert sums["tokens"][2] == len(own) > 0
    torch.testing.assert_close(sums["weighted/total"][2], own.sum())
    torch.testing.assert_close(sums["weighted/squares"][2], own.square().sum())


def test_a_training_ends_with_every_figure_of_its_last_validation(tmp_path, monkeypatch):
    drawn: dict = {}
    for name in ALL:
        keep(monkeypatch, drawn, name)
    validation = [token_batch(seed, padded=seed % 3) for seed in range(20, 23)]
    recorder, logger = Recorder(), TensorBoardLogger(tmp_path, name="tensorboard", version="")
    callbacks = [RoutingStatistics(), RoutingFigures(loss_batches=2, dpi=30), recorder]
    trainer = plain_trainer(tmp_path, callbacks, max_steps=3, val_check_interval=3, logger=logger)
    module = small_module(skip_rule="first")
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(3)], validation))

    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == ALL
    events = EventAccumulator(logger.log_dir).Reload()
    assert sorted(events.Tags()["images"]) == [f"figures/{name}" for name in ALL]

    outputs = recorder.validation_outputs
    chosen = [
        torch.cat([one["routing"][r].attention.selected[one["attention_mask"]] for one in outputs])
        for r in range(4)
    ]
    wanted = [torch.bincount(one.flatten(), minlength=4).tolist() for one in chosen]
    assert drawn["module_use"][0]["attention"].tolist() == wanted
    lines = drawn["depth_by_loss"][0]
    predicted = losses = 0
    with torch.no_grad():
        for batch in validation[:2]:
            logits = module.model(
                input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
            )
            real = batch["labels"][:, 1:] != -100
            predicted += int(real.sum())
            losses += int((real & (loss >= 3) & (loss < 4)).sum())
    assert lines["effective"].tokens.sum() == predicted
    assert lines["effective"].tokens[3] == losses > 0
    tokens = sum(int(one["attention_mask"].sum()) for one in outputs)
    assert drawn["depth_by_frequency"][0]["weighted"].tokens.sum() == tokens
    assert drawn["use_over_time"][0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("every", "times"), [(None, 1), (2, 3)])
def test_figures_are_drawn_at_the_end_and_at_intervals(tmp_path, monkeypatch, every, times):
    steps: list[int] = []
    monkeypatch.setattr(
        RoutingFigures,
        "_draw",
        lambda self, trainer, module: (
            steps.append(trainer.global_step) or setattr(self, "_drawn_at", trainer.global_step)
        ),
    )
    trainer = plain_trainer(
        tmp_path,
        [RoutingFigures(every_n_steps=every)],
        max_steps=5,
        val_check_interval=1,
        limit_val_batches=1,
    )
    trainer.fit(
        small_module(), datamodule=FixedBatches([token_batch(seed) for seed in range(5)], [token_batch(9)])
    )
    assert steps == ([5] if times == 1 else [2, 4, 5])


def test_a_plain_model_has_no_figures(tmp_path):
    trainer = plain_trainer(tmp_path, [RoutingFigures()], max_steps=1)
    trainer.fit(small_module(num_stages=0), datamodule=FixedBatches([token_batch(0)], [token_batch(1)]))
    assert not (tmp_path / "figures").exists()


def test_a_large_batch_gives_its_first_sequences_to_depth_by_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "MAX_LOGITS", 2 * 8 * 61)
    drawn: dict = {}
    keep(monkeypatch, drawn, "depth_by_loss")
    trainer = plain_trainer(tmp_path, [RoutingFigures(dpi=30)], max_steps=1)
    batches = FixedBatches([token_batch(0)], [token_batch(1, rows=5)])
    trainer.fit(small_module(), datamodule=batches)
    assert drawn["depth_by_loss"][0]["effective"].tokens.sum() == 2 * 7
