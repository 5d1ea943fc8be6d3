"""The gradient of an optimizer step is that of the mean over its targets, however they are divided."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


def gradients(module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def trained(folder, batches, accumulate, *, steps=1, **changes):
    """Return the gradient of the last of some steps of SGD-like updates, too small to matter."""
    seen = []
    module = small_module(
        optimizer={"lr": 1e-12, "weight_decay": 0.0}, **({"balance_coefficient": 0.0} | changes)
    )
    after = module.on_before_optimizer_step

    def keep(optimizer):
        seen.append(gradients(module).clone())
        after(optimizer)

    module.on_before_optimizer_step = keep
    options = {"max_steps": steps, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    plain_trainer(folder, [], **options).fit(module, datamodule=FixedBatches(batches, []))
    return seen


def masked(batch, num_targets):
    """Return a batch of which only the last tokens of the first row are targets."""
    labels = torch.full_like(batch["labels"], -100)
    if num_targets:
        labels[0, -num_targets:] = batch["input_ids"][0, -num_targets:]
    return batch | {"labels": labels}


def test_a_step_cut_by_the_end_of_an_epoch_is_divided_by_what_was_in_it(tmp_path, caplog):
    full = token_batch(0, rows=4)
    quarters = [{name: value[row : row + 1] for name, value in full.items()} for row in range(4)]
    (wanted,) = trained(tmp_path, [full], 1)
    with caplog.at_level(logging.WARNING, "mom"):
        (found,) = trained(tmp_path, quarters, 32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert [one.getMessage() for one in caplog.records if one.name.startswith("mom")] == [
        "trainer.accumulate_grad_batches=32 is more than the 4 batches of an epoch, so an optimizer step has only 4"
    ]
    first, second = trained(tmp_path, quarters, 3, steps=2)
    (alone,) = trained(tmp_path, quarters[3:], 1)
    torch.testing.assert_close(second, alone, rtol=1e-4, atol=1e-5)
    (three,) = trained(tmp_path, [{name: value[:3] for name, value in full.items()}], 1)
    torch.testing.assert_close(first, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(7, 1), (1, 7), (0, 3), (3, 0)])
def test_each_target_counts_equally_whatever_micro_batch_it_is_in(tmp_path, counts):
    batches = [masked(token_batch(seed), count) for seed, count in enumerate(counts)]
    both = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    (wanted,) = trained(tmp_path, [both], 1)
    (found,) = trained(tmp_path, batches, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_equal_micro_batches_are_averaged_exactly_as_by_lightning(tmp_path):
    batches = [token_batch(0), token_batch(1)]
    (found,) = trained(tmp_path, batches, 2, balance_coefficient=0.01)
    twin = small_module(balance_coefficient=0.01)
    for batch in batches:
        (twin.run_model(batch).loss / 2).backward()
    assert torch.equal(found, gradients(twin))
