"""Task ``generate``: continue prompts, printing token by token."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch import seed_everything
from rich.console import Console
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextStreamer

from mom.analysis.streaming import DepthStreamer
from mom.config import DataConfig, GenerateConfig, RunConfig
from mom.console import announce
from mom.data.cache import cache_folder
from mom.data.tokenizer import load_model_tokenizer
from mom.errors import UsageError
from mom.interop import load_model
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.files import parse_json

GENERATIONS = "generations.jsonl"
HISTORY = "prompt_history"
"""File in the cache with the prompts that were typed."""
HISTORY_LENGTH = 1000
STANDARD_INPUT = "-"
"""The prompt that stands for the text on standard input."""


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Continue each prompt with the model in ``init``, or those that the user types.

    Prompts and continuations are printed as they are generated (with beam search, at the end) and written to
    ``generations.jsonl``, one line ``{"prompt", "completion", "tokens"}`` per prompt, with the ``"depths"`` of the
    completion's tokens if ``show_routing`` is set.

    Returns:
        The number of ``prompts``, and of generated ``tokens`` in total.

    Raises:
        UsageError: weights, tokenizer, or prompts cannot be used; raised before generating.
    """
    task = config.task
    assert isinstance(task, GenerateConfig) and config.init is not None
    prompts = given_prompts(task)
    model = load_model(config.init).eval()
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UsageError(f"cannot generate with init={config.init}: its weight {name} is not finite")
    if task.show_routing and not model.config.num_stages:
        raise UsageError(
            "show_routing requires a model with routers; every token of a plain one has the same depth"
        )
    tokenizer = load_model_tokenizer(config.init, config.data.tokenizer, model.config)
    encoded = [encode(tokenizer, prompt, task, model.config) for prompt in prompts or ()]
    options = generation_options(task, tokenizer)
    seed_everything(config.seed, workers=True, verbose=False)
    # The device that a Trainer would choose.
    model.to(Fabric(accelerator=config.trainer.accelerator, devices=1).device)
    if task.show_routing and sys.stdout.isatty():
        Console().print(DepthStreamer(model, tokenizer).legend())
    pairs = (
        typed_prompts(tokenizer, task, model.config)
        if prompts is None
        else zip(prompts, encoded, strict=True)
    )
    number = count = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((run.path / GENERATIONS).open("w", encoding="utf-8"))
        if prompts is None:
            data = config.data
            stack.enter_context(
                line_editing(cache_folder(data) / HISTORY if isinstance(data, DataConfig) else None)
            )
        for prompt, ids in pairs:
            try:
                line = continue_prompt(model, tokenizer, prompt, ids, options, task.show_routing)
            except KeyboardInterrupt as error:
                if prompts is not None or getattr(error, "number", signal.SIGINT) != signal.SIGINT:
                    raise
                announce("")  # Ctrl-C ends this text; Ctrl-D the session
                continue
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            number += 1
            count += line["tokens"]
    announce(f"Written to {run.path}")
    return {"prompts": number, "tokens": count}


def given_prompts(task: GenerateConfig) -> list[str] | None:
    """Return the prompts of the request; ``None`` if the user is to type them.

    Raises:
        UsageError: they cannot be read.
    """
    if task.prompt == STANDARD_INPUT:
        return [_without_line_end(_read_text("prompt", None))]
    if task.prompt is not None:
        return [task.prompt]
    if task.prompt_file is not None:
        return [_without_line_end(_read_text("task.prompt_file", Path(task.prompt_file)))]
    return None if task.prompts is None else list(read_prompts(Path(task.prompts)))


def typed_prompts(
    tokenizer: PreTrainedTokenizerFast, task: GenerateConfig, config: MoMConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the prompts that the user types, with their tokens."""
    announce("Type a text to continue. Ctrl-C ends a continuation, Ctrl-D the session.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            announce("")
            return
        if not prompt:
            continue
        try:
            yield prompt, encode(tokenizer, prompt, task, config)
        except UsageError as error:
            announce(f"error: {error}")


@contextlib.contextmanager
def line_editing(history: Path | None) -> Iterator[None]:
    """Let arrow keys edit what ``input()`` reads, and recall lines of this session and of those in a file."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    try:
        yield
    finally:
        if history is not None:
            readline.set_history_length(HISTORY_LENGTH)
            with contextlib.suppress(OSError):
                history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(history)


def read_prompts(path: Path) -> Iterator[str]:
    """Yield the prompts of a file: its non-blank lines, or the key ``prompt`` of each line of a ``.jsonl`` file.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, has no prompt, or has an invalid line.
    """
    lines = _read_text("prompts", path).splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UsageError(f"prompts must be a file with a prompt on each line, got {path}, which has none")
    for number, line in numbered:
        if path.suffix != ".jsonl":
            yield line
            continue
        try:
            prompt = parse_json(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise UsageError(
                f'each line of prompts must be {{"prompt": "…"}}, but line {number} of {path} is not'
            )
        yield prompt


def encode(
    tokenizer: PreTrainedTokenizerFast, prompt: str, task: GenerateConfig, config: MoMConfig
) -> torch.Tensor:
    """Tokenize a prompt, int64 [1, T]; an empty prompt becomes the end-of-text token, which precedes texts in training.

    Raises:
        UsageError: prompt and continuation together exceed the model's positions.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    if len(ids) + task.max_new_tokens > config.max_positions:
        raise UsageError(
            f"task.max_new_tokens must be at most {config.max_positions - len(ids)} after a prompt of {len(ids)} "
            f"tokens (the model has {config.max_positions} positions), got {task.max_new_tokens}"
        )
    return torch.tensor([ids])


def generation_options(task: GenerateConfig, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Convert the task's options to those of transformers."""
    sampling = (
        {"temperature": task.temperature, "top_k": task.top_k or 0, "top_p": task.top_p}
        if task.do_sample
        else {}
    )
    return GenerationConfig(
        max_new_tokens=task.max_new_tokens,
        do_sample=task.do_sample,
        num_beams=task.num_beams,
        repetition_penalty=task.repetition_penalty,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )


@torch.inference_mode()
def continue_prompt(
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    ids: torch.Tensor,
    options: GenerationConfig,
    show_routing: bool = False,
) -> dict[str, Any]:
    """Print a prompt and its continuation, and return its line of ``generations.jsonl``."""
    depths = DepthStreamer(model, tokenizer) if show_routing else None
    # Beam search can replace earlier tokens, so its result is printed only at the end.
    plain = TextStreamer(tokenizer, skip_special_tokens=True) if options.num_beams == 1 else None
    with contextlib.nullcontext() if depths is None else depths.watching():
        sequence = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=torch.ones_like(ids).to(model.device),
            generation_config=options,
            streamer=depths or plain,
        )[0].tolist()
    if depths is None and plain is None:
        print(tokenizer.decode(sequence, skip_special_tokens=True), flush=True)
    generated = sequence[ids.shape[1] :]
    completion = tokenizer.decode(generated, skip_special_tokens=True)
    line = {"prompt": prompt, "completion": completion, "tokens": len(generated)}
    return line if depths is None else line | {"depths": depths.depths[ids.shape[1] :]}


def _read_text(option: str, path: Path | None) -> str:
    """Read a file or, if ``path`` is None, standard input.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        given = STANDARD_INPUT if path is None else path
        raise UsageError(f"cannot read {option}={given}: {reason}") from error


def _without_line_end(text: str) -> str:
    """Return a text without the line end that editors and ``echo`` add."""
    return text.removesuffix("\n").removesuffix("\r")
