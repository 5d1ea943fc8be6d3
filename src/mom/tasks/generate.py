"""Task ``generate``: continue prompts, printing token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch import seed_everything
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextStreamer

from mom.config import GenerateConfig, RunConfig
from mom.console import announce
from mom.data.tokenizer import load_model_tokenizer
from mom.errors import UsageError
from mom.interop import load_model
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.files import parse_json

GENERATIONS = "generations.jsonl"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Continue each prompt with the model in ``init``.

    Prompts and continuations are printed as they are generated (with beam search, at the end) and written to
    ``generations.jsonl``, one line ``{"prompt", "completion", "tokens"}`` per prompt.

    Returns:
        The number of ``prompts``, and of generated ``tokens`` in total.

    Raises:
        UsageError: weights, tokenizer, or prompts cannot be used; raised before generating.
    """
    task = config.task
    assert isinstance(task, GenerateConfig) and config.init is not None
    prompts = [task.prompt] if task.prompt is not None else list(read_prompts(Path(task.prompts or "")))
    model = load_model(config.init).eval()
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UsageError(f"cannot generate with init={config.init}: its weight {name} is not finite")
    tokenizer = load_model_tokenizer(config.init, config.data.tokenizer, model.config)
    encoded = [encode(tokenizer, prompt, task, model.config) for prompt in prompts]
    options = generation_options(task, tokenizer)
    seed_everything(config.seed, workers=True, verbose=False)
    # The device that a Trainer would choose.
    model.to(Fabric(accelerator=config.trainer.accelerator, devices=1).device)
    count = 0
    with (run.path / GENERATIONS).open("w", encoding="utf-8") as file:
        for prompt, ids in zip(prompts, encoded, strict=True):
            generated = continue_prompt(model, tokenizer, ids, options)
            completion = tokenizer.decode(generated, skip_special_tokens=True)
            line = {"prompt": prompt, "completion": completion, "tokens": len(generated)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += len(generated)
    announce(f"Written to {run.path}")
    return {"prompts": len(prompts), "tokens": count}


def read_prompts(path: Path) -> Iterator[str]:
    """Yield the prompts of a file: its non-blank lines, or the key ``prompt`` of each line of a ``.jsonl`` file.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, has no prompt, or has an invalid line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise UsageError(f"cannot read prompts={path}: {reason}") from error
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
    ids: torch.Tensor,
    options: GenerationConfig,
) -> list[int]:
    """Print a prompt and its continuation, and return the generated tokens."""
    # Beam search can replace earlier tokens, so its result is printed only at the end.
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if options.num_beams == 1 else None
    sequence = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        generation_config=options,
        streamer=streamer,
    )[0].tolist()
    if streamer is None:
        print(tokenizer.decode(sequence, skip_special_tokens=True), flush=True)
    return sequence[ids.shape[1] :]
