"""The generate task: continuations on the terminal and in the file equal those of transformers."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from mom.analysis.streaming import DepthStreamer
from mom.config import bind
from mom.data.tokenizer import load_model_tokenizer, train_tokenizer, vocabulary_identity, vocabulary_size
from mom.errors import UsageError
from mom.interop import load_model
from mom.metrics.depth import token_depths
from mom.runs.directory import RunDirectory
from mom.runs.signals import Interrupted
from mom.tasks import generate
from tests.helpers.checkpoints import request, small_tokenizer, write_run
from tests.helpers.models import small_model


def generated(folder: Path, init: Path, seed: int = 0, **task: Any) -> list[dict[str, Any]]:
    whole = request(folder, {"name": "generate", "max_new_tokens": 8, **task}, init=str(init), seed=seed)
    config = bind(whole)
    summary = generate.run(config, RunDirectory(config.run_dir))
    text = (Path(config.run_dir) / "generations.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert summary == {"prompts": len(lines), "tokens": sum(line["tokens"] for line in lines)}
    return lines


def most_likely(init: Path, prompt: str, count: int) -> str:
    """Decode greedily, with a full forward pass for each token."""
    model, tokenizer = load_model(init).eval(), small_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_most_likely_continuation_is_streamed_and_written(tmp_path, capsys):
    init = write_run(tmp_path / "first")
    (line,) = generated(tmp_path, init, prompt="module router", do_sample=False)

    assert line["prompt"] == "module router"
    assert line["completion"] == most_likely(init, "module router", 8)
    assert "module router" + line["completion"] in capsys.readouterr().out


def test_a_beam_search_is_shown_at_its_end(tmp_path, capsys):
    init = write_run(tmp_path / "first")
    (line,) = generated(tmp_path, init, prompt="module", do_sample=False, num_beams=3)

    assert line["completion"]
    assert "module" + line["completion"] in capsys.readouterr().out


def test_the_seed_decides_what_is_drawn(tmp_path):
    init = write_run(tmp_path / "first")
    same = [generated(tmp_path, init, prompt="skip", seed=3) for _ in range(2)]

    assert same[0] == same[1]
    assert same[0] != generated(tmp_path, init, prompt="skip", seed=4)
    # Sampling from a single token is greedy.
    (narrow,) = generated(tmp_path, init, prompt="skip", top_k=1)
    assert narrow["completion"] == most_likely(init, "skip", 8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", "\ufeffmodule\n\nskip round\n"),
        ("prompts.jsonl", '{"prompt": "module"}\n{"prompt": "skip round"}\n'),
    ],
)
def test_a_file_of_prompts(tmp_path, name, text):
    init = write_run(tmp_path / "first")
    (tmp_path / name).write_text(text, encoding="utf-8")
    lines = generated(tmp_path, init, prompts=str(tmp_path / name), do_sample=False)

    assert [line["prompt"] for line in lines] == ["module", "skip round"]
    assert lines[1]["completion"] == most_likely(init, "skip round", 8)


def test_an_empty_prompt_begins_a_text(tmp_path):
    (line,) = generated(tmp_path, write_run(tmp_path / "first"), prompt="", do_sample=False)

    assert line["tokens"] > 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "task=generate requires prompt or prompts"),
        ({"prompt": "a", "prompts": "b"}, "prompt cannot be combined with prompts"),
        ({"prompts": "a", "prompt_file": "b"}, "prompts cannot be combined with task.prompt_file"),
        ({"prompt": "a", "show_routing": True, "num_beams": 2}, "show_routing cannot be combined with"),
        ({"prompt_file": "latin.txt"}, r"cannot read task.prompt_file=latin.txt: not UTF-8 at byte 3"),
        ({"prompt": "a", "top_p": 0.0}, "task.top_p must be greater than 0 and at most 1, got 0.0"),
        (
            {"prompt": "a", "max_new_tokens": 64},
            "task.max_new_tokens must be at most 63 after .*, got 64",
        ),
        ({"prompts": "missing.txt"}, r"cannot read prompts=missing.txt: No such file"),
        (
            {"prompts": "empty.txt"},
            r"prompts must be a file with a prompt .*, got .*empty.txt, which has none",
        ),
        ({"prompts": "latin.txt"}, r"cannot read prompts=.*latin.txt: not UTF-8"),
        (
            {"prompts": "broken.jsonl"},
            r"each line of prompts must be .*, but line 2 of .*broken.jsonl is not",
        ),
    ],
)
def test_an_invalid_prompt_is_rejected(tmp_path, monkeypatch, task, message):
    monkeypatch.chdir(tmp_path)
    init = write_run(tmp_path / "first")
    Path("empty.txt").write_text("\n \n", encoding="utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("broken.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=f"^{message}"):
        generated(tmp_path, init, **task)


def test_a_prompt_comes_from_standard_input_or_a_whole_file(tmp_path, monkeypatch):
    init = write_run(tmp_path / "first")
    text = "module\n  router"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n".encode()), "utf-8"))
    (tmp_path / "one.txt").write_bytes(f"\ufeff{text}\r\n".encode())

    for task in ({"prompt": "-"}, {"prompt_file": str(tmp_path / "one.txt")}):
        (line,) = generated(tmp_path, init, do_sample=False, **task)
        assert (line["prompt"], line["completion"]) == (text, most_likely(init, text, 8))


def test_a_session_at_the_terminal(tmp_path, monkeypatch, capsys):
    """Two texts, an empty line, a text that is too long, and one that Ctrl-C ends; a later session can recall them."""
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("MOM_CACHE", str(tmp_path / "cache"))
    init = write_run(tmp_path / "first")
    given = iter(["module", "", "skip " * 100, "stop", "router"])
    shown: list[str] = []

    def typed(mark: str) -> str:
        shown.append(mark)
        text = next(given, None)
        if text is None:
            raise EOFError
        readline.add_history(text)
        return text

    continued = generate.continue_prompt

    def continue_or_stop(model, tokenizer, prompt, *others):
        if prompt == "stop":
            raise KeyboardInterrupt
        return continued(model, tokenizer, prompt, *others)

    readline.clear_history()
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(generate, "continue_prompt", continue_or_stop)
    lines = generated(tmp_path, init, do_sample=False)

    assert [line["prompt"] for line in lines] == ["module", "router"]
    assert lines[1]["completion"] == most_likely(init, "router", 8)
    assert shown == ["> "] * 6
    readline.clear_history()
    with generate.line_editing(tmp_path / "cache" / "prompt_history"):
        lasts = [
            readline.get_history_item(number)
            for number in range(1, 1 + readline.get_current_history_length())
        ]
    assert (lasts[0], lasts[-1]) == ("module", "router")
    assert "error: task.max_new_tokens must be at most" in capsys.readouterr().out


def test_a_signal_to_terminate_ends_a_session(tmp_path, monkeypatch):
    init = write_run(tmp_path / "first")

    def terminate(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("builtins.input", lambda mark: "module")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(generate, "continue_prompt", terminate)
    with pytest.raises(Interrupted, match="SIGTERM"):
        generated(tmp_path, init)


def test_the_routing_is_shown_by_color_and_written(tmp_path, capsys, monkeypatch):
    """The depth of each token is that of a full forward pass; colors only appear in a terminal."""
    init = write_run(tmp_path / "first")
    prompt = "module é 漢 router"  # characters of several tokens
    (line,) = generated(tmp_path, init, prompt=prompt, show_routing=True, seed=2)
    out = capsys.readouterr().out
    assert prompt + line["completion"] in out and "\x1b" not in out

    model, tokenizer = load_model(init).eval(), small_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    streamer = DepthStreamer(model, tokenizer, Console(file=io.StringIO()))
    with torch.inference_mode(), streamer.watching():
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0, streamer=streamer
        )
        routing = model(input_ids=whole, output_routing=True).routing
    depths = token_depths(routing, fixed_depth=model.config.fixed_depth)["effective"][0]
    assert streamer.depths[: whole.shape[1]] == depths.tolist()
    assert len(line["depths"]) == line["tokens"]

    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, color_system="truecolor", width=20)
    streamer = DepthStreamer(model, tokenizer, terminal)
    with torch.inference_mode(), streamer.watching():
        streamer.put(torch.tensor([ids]))
        streamer.end()
    assert re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()) == prompt + "\n"
    assert file.getvalue().count("\x1b[38;2;") >= 3
    assert str(streamer.legend()).startswith("depth in blocks: ")


def test_a_plain_model_has_no_routing_to_show(tmp_path):
    init = write_run(tmp_path / "first", num_stages=0)
    with pytest.raises(UsageError, match=r"^show_routing requires a model with routers"):
        generated(tmp_path, init, prompt="a", show_routing=True)


def test_the_command_line_knows_the_prompt_at_the_top() -> None:
    from mom.config.composition import composed
    from tests.test_configs import CONF

    config = bind(composed(CONF, ["task=generate", "prompt=once", "init=x", "task.top_k=null"]))
    assert (config.task.prompt, config.task.top_k) == ("once", None)


def test_weights_that_are_not_finite_are_named(tmp_path):
    model = small_model(vocab_size=300, max_positions=64)
    model.model.norm.weight.data[0] = float("nan")
    init = write_run(tmp_path / "first", model)
    with pytest.raises(
        UsageError, match=r"^cannot generate with init=.*: its weight model.norm.weight is not finite"
    ):
        generated(tmp_path, init, prompt="module")


def test_a_tokenizer_that_was_exchanged_is_rejected(tmp_path):
    init = write_run(tmp_path / "first")
    config = load_model(str(init)).config
    config.vocabulary = vocabulary_identity(small_tokenizer())
    assert load_model_tokenizer(str(init), None, config).eos_token_id is not None
    size = vocabulary_size(small_tokenizer())
    train_tokenizer(["zzzz qqqq " * 100], size).save_pretrained(str(tmp_path / "first" / "tokenizer"))
    with pytest.raises(
        UsageError, match=r"^.*last.ckpt was trained with other tokens than those of .*tokenizer; set"
    ):
        load_model_tokenizer(str(init), None, config)


def test_a_tokenizer_with_other_tokens_is_rejected(tmp_path):
    init = write_run(tmp_path / "first")
    train_tokenizer(["zzzz qqqq " * 100], 300).save_pretrained(str(tmp_path / "theirs"))
    small_tokenizer().save_pretrained(str(tmp_path / "same"))
    config = load_model(init).config
    assert load_model_tokenizer(str(init), str(tmp_path / "same"), config).eos_token_id is not None
    with pytest.raises(
        UsageError, match=r"^data.tokenizer must be the tokenizer of .*last.ckpt, got .*theirs, whose"
    ):
        load_model_tokenizer(str(init), str(tmp_path / "theirs"), config)
