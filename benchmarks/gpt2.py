"""The GPT-2 of transformers, in this process or in another with PyTorch's default memory allocator."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.setting import Setting


def gpt2_training(setting: Setting) -> Callable[[], None]:
    """Return a function that runs GPT-2's forward and backward pass at the setting's size."""
    size = setting.size
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.length,
            n_embd=size.d_model,
            n_head=size.num_heads,
            n_layer=size.layers,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model.train().to(setting.device)

    def step() -> None:
        with setting.autocast():
            loss = model(input_ids=setting.ids, labels=setting.ids, use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


class GPT2Process:
    """GPT-2 training in another process, with PyTorch's default memory allocator.

    On the CPU, the benchmark keeps freed memory like this project's training; training with transformers does not.
    """

    def __init__(self, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, setting), daemon=True)

    def __enter__(self) -> GPT2Process:
        self._process.start()
        return self

    def step(self) -> None:
        """Run a training step in the other process and wait for it."""
        self._pipe.send(True)
        self._pipe.recv()

    def __exit__(self, *_: object) -> None:
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Connection, setting: Setting) -> None:
    step = gpt2_training(setting)
    while pipe.recv():
        step()
        pipe.send(True)
