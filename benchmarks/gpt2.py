"""GPT-2 of transformers as something to compare with: here, and in a process with an allocator of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from transformers import GPT2Config, GPT2LMHeadModel

if TYPE_CHECKING:
    from benchmarks.bench import Bench


def gpt2_training(bench: Bench) -> Callable[[], None]:
    """Forward and backward of GPT-2 at the bench's size, on its tokens."""
    size = bench.size
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
    model.train().to(bench.device)

    def step() -> None:
        with bench.autocast():
            loss = model(input_ids=bench.ids, labels=bench.ids, use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


class GPT2Elsewhere:
    """The same in a process of its own, whose memory allocator is as PyTorch leaves it.

    The bench keeps freed memory on the CPU, as this project's training does and transformers' does not.
    """

    def __init__(self, bench: Bench) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, bench), daemon=True)

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


def _serve(pipe: Connection, bench: Bench) -> None:
    step = gpt2_training(bench)
    while pipe.recv():
        step()
        pipe.send(True)
