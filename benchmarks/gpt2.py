"""GPT-2 of transformers as something to compare with: here, and in a process with an allocator of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.setting import Setting


def gpt2_training(setting: Setting) -> Callable[[], None]:
    """Forward and backward of GPT-2 at the setting's size, on its tokens."""
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


class GPT2Elsewhere:
    """The same in a process of its own, whose memory allocator is as PyTorch leaves it.

    The bench keeps freed memory on the CPU, as this project's training does and transformers' does not.
    """

    def __init__(self, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, setting), daemon=True)

    def __enter__(self) -> GPT2Elsewhere:
        self._process.start()
        return self

    def step(self) -> None:
        """One training step there; returns when it is done."""
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
