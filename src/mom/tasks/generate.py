"""Continue prompts with a model, token by token on the terminal."""

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
from mom.data.tokenizer import load_model_tokenizer
from mom.errors import RequestError
from mom.interop import load_model
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory

GENERATIONS = "generations.jsonl"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Continue each prompt with the model of ``init``.

    Prompts and continuations are printed as they come (a beam search's at its end), and written to
    ``generations.jsonl``, a line ``{"prompt", "completion", "tokens"}`` for each prompt. The same seed gives
    the same continuations.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        ``prompts`` and ``tokens``: how many were continued, by how many tokens in all.

    Raises:
        RequestError: weights, tokenizer or prompts that cannot be used, before anything is generated.
    """
    task = config.task
    assert isinstance(task, GenerateConfig) and config.init is not None
    prompts = [task.prompt] if task.prompt is not None else list(read_prompts(Path(task.prompts or "")))
    model = load_model(config.init).eval()
    tokenizer = load_model_tokenizer(config.init, config.data.tokenizer, model.config)
    encoded = [encode(tokenizer, prompt, task, model.config) for prompt in prompts]
    options = generation_options(task, tokenizer)
    seed_everything(config.seed, workers=True, verbose=False)
    # One device, chosen as a Trainer would choose it.
    model.to(Fabric(accelerator=config.trainer.accelerator, devices=1).device)
    count = 0
    with (run.path / GENERATIONS).open("w", encoding="utf-8") as file:
        for prompt, ids in zip(prompts, encoded, strict=True):
            added = continue_prompt(model, tokenizer, ids, options)
            completion = tokenizer.decode(added, skip_special_tokens=True)
            line = {"prompt": prompt, "completion": completion, "tokens": len(added)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += len(added)
    print(f"Written to {run.path}", flush=True)
    return {"prompts": len(prompts), "tokens": count}


def read_prompts(path: Path) -> Iterator[str]:
    """Yield the prompts of a file: one on each line that is not blank, or ``prompt`` of each ``.jsonl`` line.

    Raises:
        RequestError: no such file, not UTF-8, no prompt in it, or a line that is not as it should be.
    """
    allowed = "a file of UTF-8 text with a prompt on each line, or .jsonl with the key prompt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RequestError("prompts", f"{path} ({reason})", allowed) from error
    given = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not given:
        raise RequestError("prompts", f"{path} (no prompt in it)", allowed)
    for number, line in given:
        if path.suffix != ".jsonl":
            yield line
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise RequestError("prompts", f"{path}:{number}", 'a JSON object with a text, {"prompt": "…"}')
        yield prompt


def encode(
    tokenizer: PreTrainedTokenizerFast, prompt: str, task: GenerateConfig, config: MoMConfig
) -> torch.Tensor:
    """A prompt's ids, int64 [1, T]; the empty prompt is the end-of-text token, after which a text begins.

    Raises:
        RequestError: prompt and continuation are longer than the model's positions.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    if len(ids) + task.max_new_tokens > config.max_positions:
        raise RequestError(
            "task.max_new_tokens",
            f"{task.max_new_tokens} after a prompt of {len(ids)} tokens",
            f"{config.max_positions} tokens in all, the positions of the model",
        )
    return torch.tensor([ids])


def generation_options(task: GenerateConfig, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The task's options as transformers takes them."""
    drawing = (
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
        **drawing,
    )


@torch.inference_mode()
def continue_prompt(
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    ids: torch.Tensor,
    options: GenerationConfig,
) -> list[int]:
    """Print a prompt and its continuation; returns the tokens that were added."""
    # A beam search may still change its mind about any token, so it can only be shown at its end.
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if options.num_beams == 1 else None
    whole = model.generate(  # type: ignore[misc]  # transformers types self by a protocol of its own
        input_ids=ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        generation_config=options,
        streamer=streamer,
    )[0].tolist()
    if streamer is None:
        print(tokenizer.decode(whole, skip_special_tokens=True), flush=True)
    return whole[ids.shape[1] :]
