"""Noise on the routers' choices: how it anneals, what it samples, and that evaluation has none."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import RouterNoise
from mom.model.router import Router
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


class Scales(Callback):
    """Keeps what each micro-batch is run with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, float]] = []

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        router = pl_module.model.model.stages[0].ffn.router
        self.seen.append((router.noise_kind, round(float(router.noise_scale), 6)))


@pytest.mark.parametrize(
    ("steps", "scales"), [(2, [2.0, 1.0, 0.0, 0.0]), (None, [2.0, 1.5, 1.0, 0.5])], ids=["two", "all"]
)
def test_it_goes_to_nothing_over_the_steps_and_nothing_stays(tmp_path, steps, scales):
    module, seen = small_module(), Scales()
    trainer = plain_trainer(
        tmp_path,
        [RouterNoise(2.0, steps, "gaussian"), seen],
        max_steps=4,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(8)], []))
    assert seen.seen == [("gaussian" if scale else None, scale) for scale in scales for _ in range(2)]
    assert module.model.model.stages[0].ffn.router.noise_kind is None


def test_gumbel_noise_of_scale_one_samples_by_the_probabilities():
    config = small_config(router="linear", top_k=2, temperature=1.0)
    router = Router(config, config.pools()[1], 0).train()
    router.set_noise("gumbel", 1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        routing, _ = router(torch.ones(1, 40_000, 16), None, 0)
    p = routing.scores[0, 0]
    pairs = torch.bincount(4 * routing.selected[0, :, 0] + routing.selected[0, :, 1], minlength=16) / 40_000
    for first in range(4):
        for second in range(4):
            # Without replacement: the second among those that the first left.
            expected = 0.0 if first == second else float(p[first] * p[second] / (1 - p[first]))
            assert float(pairs[4 * first + second]) == pytest.approx(expected, abs=0.01)
    chosen = routing.scores.gather(-1, routing.selected)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("kind", ["gaussian", "gumbel"])
def test_only_training_is_noisy_and_a_seed_repeats_it(kind):
    model, ids = small_model(), tokens(2, 16)
    quiet = model(input_ids=ids).logits
    for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
        part.router.set_noise(kind, 1.0)
    assert torch.equal(model(input_ids=ids).logits, quiet)
    model.train()
    noisy = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        noisy.append(model(input_ids=ids).logits)
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2]) and not torch.equal(noisy[0], quiet)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": -1.0}, "scale: -1.0; a number of at least 0"),
        ({"steps": 0}, "steps: 0; an integer of at least 1, or null"),
        ({"kind": "uniform"}, "kind: uniform; one of gaussian, gumbel"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        RouterNoise(**given)
    with pytest.raises(ValueError, match=r"scale: 1\.0; 0 with router random"):
        RouterNoise(1.0).check_fits(small_config(router="random"), 10)
