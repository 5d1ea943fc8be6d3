"""A resumed run continues with the saved random state."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from lightning.pytorch import Trainer

from mom.callbacks import ExactResume


def test_the_state_is_restored_once_before_the_first_batch():
    torch.manual_seed(3)
    state = ExactResume().state_dict()
    wanted = torch.rand(4)
    resumed = ExactResume()
    resumed.load_state_dict(state)
    torch.manual_seed(9)  # startup draws other random numbers
    resumed.on_train_batch_start(Trainer(accelerator="cpu"), None)
    assert torch.equal(torch.rand(4), wanted)
    after = torch.get_rng_state()
    resumed.on_train_batch_start(Trainer(accelerator="cpu"), None)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_checkpoint_before_the_first_batch_has_the_state_that_was_loaded():
    torch.manual_seed(3)
    state = ExactResume().state_dict()
    resumed = ExactResume()
    resumed.load_state_dict(state)
    torch.manual_seed(9)
    assert torch.equal(resumed.state_dict()["ranks"][0]["cpu"], state["ranks"][0]["cpu"])
    resumed.on_train_batch_start(Trainer(accelerator="cpu"), None)
    torch.rand(1)
    assert not torch.equal(resumed.state_dict()["ranks"][0]["cpu"], state["ranks"][0]["cpu"])


def rank(number: int) -> SimpleNamespace:
    """What the callback asks of the trainer of a rank."""
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(restarted_on_last=False))
    return SimpleNamespace(global_rank=number, should_stop=False, global_step=3, max_steps=5, fit_loop=loops)


def test_each_rank_gets_its_own_state_and_further_ranks_keep_theirs():
    ranks = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        ranks += ExactResume().state_dict()["ranks"]
    for number, seed in ((0, 3), (1, 4), (2, 9)):
        resumed = ExactResume()
        resumed.load_state_dict({"ranks": ranks})
        torch.manual_seed(9)
        resumed.on_train_batch_start(rank(number), None)
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(seed).get_state()), number


def test_each_rank_starts_with_a_seed_of_its_own():
    for number in range(3):
        torch.manual_seed(5)
        ExactResume().on_train_start(rank(number), None)
        assert torch.initial_seed() == 5 + number


def test_a_run_that_stopped_early_does_not_go_on():
    for stopped in (True, False):
        before, after, checkpoint = rank(0), rank(0), {}
        before.should_stop = stopped
        ExactResume().on_save_checkpoint(before, None, checkpoint)
        resumed = ExactResume()
        resumed.on_load_checkpoint(after, None, checkpoint)
        resumed.on_train_start(after, None)
        assert after.should_stop is stopped
