"""The rows on the training loop, with a tiny model: what is timed."""

from __future__ import annotations

from benchmarks import loop

TINY = ("model.d_model=16", "model.num_heads=2", "data.sequence_length=16", "trainer.keep_freed_memory=false")


def test_each_training_step_is_compared_with_a_validation():
    found = loop.validation(*TINY, repeats=3)
    training, validation = found.seconds["training"], found.seconds["validation"]
    assert len(training) == len(validation) == 3
    assert found.value == sorted(a / b for a, b in zip(training, validation, strict=True))[1] > 0


def test_callbacks_are_compared_with_the_rest_of_the_steps(monkeypatch):
    """With a second for each hook and 1,000 for each step, the warm-up's aside."""
    kinds: list[str] = []
    fit = loop._fit

    def with_known_seconds(config, steps, callbacks, profiler):
        fit(config, steps, callbacks, profiler)
        kinds.extend(type(callback).__name__ for callback in callbacks)
        for name, durations in profiler.recorded_durations.items():
            warm_up = len(durations) * loop.WARM_UP // steps
            later = 1000.0 if name == "run_training_batch" else 1.0
            durations[:] = [1e6] * warm_up + [later] * (len(durations) - warm_up)

    monkeypatch.setattr(loop, "_fit", with_known_seconds)
    found = loop.callbacks(*TINY, steps=4, repeats=1)
    shown = {
        "StepProgressBar",
        "RoutingStatistics",
        "EffectiveDepth",
        "RoutingPaths",
        "NonFinite",
        "Schedule",
    }
    assert shown <= set(kinds) and kinds.count("Schedule") > 1
    number = len(kinds) + 1  # and Lightning's own ModelCheckpoint
    assert found.seconds == {"callbacks": [4.0 * 6 * number], "steps": [4 * (1000.0 - 4 * number)]}


def test_the_small_size_is_that_of_the_other_rows(tmp_path):
    request = loop._request(tmp_path, *loop.SMALL)
    model = request.model_config(request.data.tokenizer_vocab_size)
    assert (model.d_model, model.vocab_size, model.num_rounds) == (768, 50257, 8)
    assert (request.data.batch_size, request.data.sequence_length) == (2, 1024)
