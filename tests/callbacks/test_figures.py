"""The figures' sums, compared with counts over tokens, and the files and loggers they go to."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mom.callbacks import RoutingFigures, RoutingStatistics
from mom.callbacks import figures as callback
from mom.plots import depth as depth_figures
from mom.plots import routing as figures
from mom.plots import rules as rule_figures
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch

ALL = [
    "depth_by_frequency",
    "depth_by_loss",
    "depth_distribution",
    "module_flow",
    "module_use",
    "use_over_time",
]


def keep(monkeypatch, drawn: dict, name: str) -> None:
    """Wrap a drawing function to record its arguments."""
    module = depth_figures if name.startswith("depth_") else figures
    draw = getattr(module, name)

    def drawing(*given, **options):
        drawn[name] = given
        return draw(*given, **options)

    monkeypatch.setattr(module, name, drawing)


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

    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.{ending}" for name in ALL for ending in ("png", "svg")}
    events = EventAccumulator(logger.log_dir).Reload()
    assert sorted(events.Tags()["images"]) == [f"figures/{name}" for name in ALL]

    outputs = recorder.validation_outputs
    chosen = [
        torch.cat([output["routing"][r].attention.selected[output["attention_mask"]] for output in outputs])
        for r in range(4)
    ]
    wanted = [torch.bincount(choices.flatten(), minlength=4).tolist() for choices in chosen]
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
    tokens = sum(int(output["attention_mask"].sum()) for output in outputs)
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


@pytest.mark.parametrize("logs", [False, True])
def test_a_plain_model_has_figures_of_training_only(tmp_path, logs):
    logger = CSVLogger(tmp_path, name="", version="") if logs else False
    trainer = plain_trainer(
        tmp_path, [RoutingFigures(dpi=30)], max_steps=2, val_check_interval=1, logger=logger
    )
    batches = FixedBatches([token_batch(0), token_batch(2)], [token_batch(1)])
    trainer.fit(small_module(num_stages=0), datamodule=batches)
    found = tmp_path / "figures"
    assert {path.name for path in found.glob("*")} == ({"loss.png", "loss.svg"} if logs else set())


def test_a_large_batch_gives_its_first_sequences_to_depth_by_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "MAX_LOGITS", 2 * 8 * 61)
    drawn: dict = {}
    keep(monkeypatch, drawn, "depth_by_loss")
    trainer = plain_trainer(tmp_path, [RoutingFigures(dpi=30)], max_steps=1)
    batches = FixedBatches([token_batch(0)], [token_batch(1, rows=5)])
    trainer.fit(small_module(), datamodule=batches)
    assert drawn["depth_by_loss"][0]["effective"].tokens.sum() == 2 * 7


@pytest.mark.parametrize("has_logits", [False, True])
def test_depth_by_loss_needs_another_pass_only_without_logits_and_never_a_loss(
    tmp_path, monkeypatch, has_logits
):
    drawn: dict = {}
    keep(monkeypatch, drawn, "depth_by_loss")
    monkeypatch.setattr(callback, "MAX_LOGITS", 2 * 8 * 61)  # two of the three sequences
    module, batch = small_module(skip_rule="first"), token_batch(1, rows=3)
    labels: list[object] = []
    run_model, validate = module.run_model, module.validation_step

    def running(given, **options):
        labels.append(given["labels"])
        return run_model(given, **options)

    def validating(given, *rest):
        logits = run_model(given, output_logits=True).logits
        return {**validate(given, *rest), **({"logits": logits} if has_logits else {})}

    module.validation_step = validating
    trainer = plain_trainer(tmp_path, [RoutingFigures(dpi=30)], max_steps=1, val_check_interval=1)
    module.run_model = running
    trainer.fit(module, datamodule=FixedBatches([token_batch(0)], [batch]))

    steps, again = labels[:2], labels[2:]  # the training step and the validation, then the figure's own pass
    assert all(given is not None for given in steps)
    assert again == ([] if has_logits else [None])
    with torch.no_grad():
        logits = module.model(input_ids=batch["input_ids"][:2]).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:2, 1:], reduction="none"
    )
    counts = drawn["depth_by_loss"][0]["effective"].tokens
    edges = torch.tensor(callback.LOSS_EDGES)
    wanted = torch.bucketize(loss.flatten(), edges[1:-1], right=True).bincount(minlength=len(edges) - 1)
    assert counts.tolist() == wanted.tolist()


def test_choices_are_drawn_by_rule_for_the_tokens_that_answer(tmp_path, monkeypatch):
    drawn = {}

    def drawing(counts, **options):
        drawn["counts"] = counts
        return rule_figures.new_figure("modules by rule", "", 1, 1)

    monkeypatch.setattr(rule_figures, "modules_by_rule", drawing)
    batch = token_batch(0)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, :-1] = -100  # the last token but one answers
    batch["choices"] = {"ffn": torch.ones_like(batch["labels"])}
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [RoutingFigures(dpi=30), recorder], max_steps=1, val_check_interval=1)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(1)], [batch]))

    (outputs,) = recorder.validation_outputs
    first = [record.ffn.selected[:, -2, 0] for record in outputs["routing"]]
    number = outputs["routing"][0].ffn.num_modules
    wanted = torch.stack([torch.bincount(choices, minlength=number + 1) for choices in first])  # (R, N+1)
    assert drawn["counts"][:, 1].tolist() == wanted.tolist()
    assert drawn["counts"].sum() == wanted.sum()
    assert (tmp_path / "figures" / "ffn_by_rule.png").is_file()


def test_a_training_that_fails_has_its_curves(tmp_path, monkeypatch):
    class Failing(Callback):
        def on_train_batch_end(self, trainer, *_, **__):
            if trainer.global_step == 2:
                raise RuntimeError("out of luck")

    def train(folder):
        logger = CSVLogger(folder, name="", version="")
        callbacks = [RoutingFigures(dpi=30), Failing()]
        trainer = plain_trainer(folder, callbacks, max_steps=4, val_check_interval=1, logger=logger)
        batches = FixedBatches([token_batch(seed) for seed in range(4)], [token_batch(9)])
        with pytest.raises(RuntimeError, match="out of luck"):
            trainer.fit(small_module(), datamodule=batches)

    train(tmp_path / "one")
    assert (tmp_path / "one" / "figures" / "loss.svg").is_file()
    monkeypatch.setattr("mom.plots.training.read_curves", lambda folder: 1 / 0)
    train(tmp_path / "two")  # a fault in drawing does not hide what went wrong
    assert not (tmp_path / "two" / "figures").exists()
