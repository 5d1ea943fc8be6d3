"""A resumed run continues with the saved random state."""

from __future__ import annotations

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
