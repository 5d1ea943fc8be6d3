"""Exported folders: their content, and loading with transformers in an environment without mom."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import mom
from mom.config import bind
from mom.cost.estimate import flops_per_token
from mom.errors import UsageError
from mom.interop import load_classifier, load_model
from mom.interop.export import model_code
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification
from mom.runs.directory import RunDirectory
from mom.tasks import export, pretrain
from tests.helpers.checkpoints import request, small_tokenizer, write_run
from tests.helpers.runs import tiny_request

WITHOUT_MOM = """
import sys, torch
sys.modules["mom"] = None  # importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer(["module router", "skip"], padding=False)["input_ids"]
with torch.no_grad():
    logits = [model(input_ids=torch.tensor([row])).logits for row in ids]
generator = pipeline("text-generation", model=folder, trust_remote_code=True)
texts = ["module router", "skip", "a module that skips the router"]
options = {"max_new_tokens": 6, "do_sample": False}
alone = [generator(text, **options)[0]["generated_text"] for text in texts]
together = [found[0]["generated_text"] for found in generator(texts, batch_size=3, **options)]
assert together == alone, (together, alone)
text = alone[0]
assert tokenizer.model_max_length == model.config.max_positions
assert tokenizer.pad_token_id == tokenizer.eos_token_id
cut = tokenizer("module " * 99, truncation=True, return_tensors="pt")["input_ids"]
assert cut.shape == (1, model.config.max_positions)
# The folder's code and the package compute the same function.
del sys.modules["mom"]
import mom.model
from mom import MoMForCausalLM
ours = AutoModelForCausalLM.from_pretrained(folder).eval()
assert type(ours) is mom.model.MoMForCausalLM and type(model) is not type(ours)
with torch.no_grad():
    for row, expected in zip(ids, logits):
        torch.testing.assert_close(ours(input_ids=torch.tensor([row])).logits, expected)
        torch.testing.assert_close(model(input_ids=torch.tensor([row])).logits, expected)
torch.save({"logits": logits, "text": text, "class": type(model).__module__}, out)
"""


THROUGHPUT = {"_target_": "mom.callbacks.ThroughputMonitor"}


def exported(folder: Path, init: Path, **groups: Any) -> Path:
    config = bind(request(folder, {"name": "export"}, init=str(init), **groups))
    summary = export.run(config, RunDirectory(config.run_dir))
    assert summary["export/folder"] == str(Path(config.run_dir) / "export")
    return Path(summary["export/folder"])


def test_transformers_alone_loads_it(tmp_path):
    init = write_run(tmp_path / "first")
    folder = exported(tmp_path, init)
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        # Without the code that transformers loaded into this process from other folders
        "PYTHONPATH": os.pathsep.join(
            path for path in sys.path if path and not (Path(path) / "transformers_modules").exists()
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MOM, str(folder), str(tmp_path / "out.pt")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["class"].startswith("transformers_modules.")

    model, tokenizer = load_model(init).eval(), small_tokenizer()
    for text, logits in zip(("module router", "skip"), found["logits"], strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits
        torch.testing.assert_close(logits, expected)
    ids = torch.tensor([tokenizer("module router")["input_ids"]])
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert found["text"] == tokenizer.decode(generated[0], skip_special_tokens=True)


def test_what_is_in_it(tmp_path):
    folder = exported(tmp_path, write_run(tmp_path / "first"))
    names = {path.name for path in folder.iterdir()}

    assert names >= {"config.json", "generation_config.json", "model.safetensors", "README.md", "modeling.py"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "configuration.py"}
    # The model of the folder has one kind of router; its code has all.
    kinds = {"gru", "linear", "mlp", "oracle", "random", "sequential"}
    assert names >= {"routers.py", *(f"routers_{name}.py" for name in ("router", "kind", *kinds))}
    assert names >= {
        "pools.py",
        *(f"pools_{name}.py" for name in ("pool", "kind", "rows", "attention", "ffn")),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MoMForCausalLM"]
    assert config["mom_version"] == mom.__version__
    # Training can start from the folder, and models saved afterwards contain no code.
    again = load_model(folder)
    assert not hasattr(again.config, "auto_map") and not hasattr(again.config, "mom_version")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer("module skip")["input_ids"] == small_tokenizer()("module skip")["input_ids"]


def test_no_file_of_code_needs_the_package():
    for name, source in model_code().items():
        compile(source, name, "exec")
        assert "import mom" not in source
        assert "from mom" not in source
        assert '"mom::' not in source
        assert "torch.ops.mom." not in source


def test_our_classes_need_no_remote_code(tmp_path):
    folder = exported(tmp_path, write_run(tmp_path / "first"))

    assert type(AutoConfig.from_pretrained(folder)) is MoMConfig
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is MoMForCausalLM


def test_a_classifier(tmp_path):
    model = load_classifier(write_run(tmp_path / "first"), ("no", "yes", "perhaps"))
    init = write_run(tmp_path / "second", model=model)
    folder = exported(tmp_path, init)
    again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.arange(8)[None]

    assert type(again) is MoMForSequenceClassification
    assert again.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert "text-classification" in (folder / "README.md").read_text(encoding="utf-8")
    assert load_classifier(folder, ("no", "yes", "perhaps")).score.weight.equal(model.score.weight)
    for source in (init, folder):
        with pytest.raises(UsageError, match=r"^init=.* must be a language model, not a classifier"):
            load_model(source)


def test_the_card_tells_what_the_run_measured_of_these_weights(tmp_path):
    init = write_run(tmp_path / "first")
    (tmp_path / "first" / "summary.json").write_text('{"val/loss": 3.25, "steps": 7}', encoding="utf-8")
    plain = {"task": {"name": "pretrain"}, "data": {"kind": "language_modeling", "corpus": "text"}}
    (tmp_path / "first" / "config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    card = (exported(tmp_path, init) / "README.md").read_text(encoding="utf-8")
    assert "| val/loss | 3.2500 |" in card
    assert "(task=pretrain language_modeling text)" in card
    assert "\n# first\n" in card
    assert "steps" not in card

    # The summary does not describe the best checkpoint.
    best = init.with_name("best.ckpt")
    init.rename(best)
    card = (exported(tmp_path, best) / "README.md").read_text(encoding="utf-8")
    assert "No results were recorded" in card
    assert "3.25" not in card


def test_the_card_of_any_checkpoint_of_a_run_has_the_numbers_of_its_step(tmp_path):
    config = tiny_request(tmp_path, run_dir=str(tmp_path / "my_run"), callbacks={"throughput": THROUGHPUT})
    run = RunDirectory(config.run_dir)
    pretrain.run(config, run)
    run.write_config({"task": {"name": "pretrain"}, "data": {"corpus": "text", "path": config.data.path}})
    with (tmp_path / "my_run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("previous", "last", "best"):
        path = tmp_path / "my_run" / "checkpoints" / f"{name}.ckpt"
        step = torch.load(path, weights_only=True)["global_step"]
        card = (exported(tmp_path, path) / "README.md").read_text(encoding="utf-8")
        losses = {int(row["step"]): float(row["val/loss"]) for row in rows if row["val/loss"]}
        assert f"| val/loss | {losses[step - 1]:.4f} |" in card, name
        depths = {int(row["step"]): float(row["val/depth/effective"]) for row in rows if row["val/loss"]}
        assert f"| effective depth, as measured | {depths[step - 1]:.2f} blocks |" in card
        assert f"| optimizer steps | {step} |" in card and f"| tokens | {step * 32} |" in card
        assert "\n# my_run\n" in card and "| run | my_run |" in card
        assert "| routers | gru, K = " in card
        assert str(tmp_path) not in card.replace(str(Path(config.run_dir).parent / "run"), "")
    model = load_model(path)
    flops = flops_per_token(model.config, model.config.max_positions).total
    assert f"at {model.config.max_positions} tokens | {flops:,.0f} |" in card
    assert f"of {model.num_parameters():,} parameters" in card
    assert "license:" not in card and "No license of the weights was given" in card


def test_a_license_is_that_of_the_request(tmp_path):
    config = bind(
        request(tmp_path, {"name": "export", "license": "mit"}, init=str(write_run(tmp_path / "first")))
    )
    export.run(config, RunDirectory(config.run_dir))
    card = (Path(config.run_dir) / "export" / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: mit\n" in card and "The weights: mit." in card


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that pushing a folder uses."""

    received: ClassVar[dict[str, Any]] = {}
    status: ClassVar[int] = 200

    @property
    def here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_secret"
        self.received[self.path] = body
        if self.path.endswith("/preupload/main"):
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.answer(
                {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.here}/me/model/commit/0"}
            )
        else:
            self.answer({"url": f"{self.here}/me/model", "errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_folder_is_pushed_in_one_commit(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    task = {"name": "export", "push_to_hub": "me/model", "private": True}
    config = bind(request(tmp_path, task, init=str(write_run(tmp_path / "first"))))
    try:
        summary = export.run(config, RunDirectory(config.run_dir))
        received = dict(Hub.received)
        monkeypatch.setattr(Hub, "status", 403)
        with pytest.raises(UsageError, match=r"^cannot push to me/model: .*403.*; the export is in "):
            export.run(config, RunDirectory(config.run_dir))
    finally:
        server.shutdown()
        server.server_close()
    assert summary["export/hub"].endswith("me/model")
    assert b'"private"' in received["/api/repos/create"]
    lines = [json.loads(line) for line in received["/api/models/me/model/commit/main"].splitlines()]
    pushed = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    folder = Path(summary["export/folder"])
    assert pushed == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert 'from_pretrained("me/model", trust_remote_code=True)' in pushed["README.md"].decode()


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("model", "x", "push_to_hub must be user/name, got model"),
        ("a//b", "x", "push_to_hub must be user/name, got a//b"),
        ("me/model", None, "push_to_hub requires a token of the Hub"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_any_work(tmp_path, monkeypatch, repo, token, message):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    config = bind(request(tmp_path, {"name": "export", "push_to_hub": repo}, init="nowhere"))
    with pytest.raises(UsageError, match=rf"^{message}"):
        export.run(config, RunDirectory(config.run_dir))


def test_without_a_tokenizer_it_is_rejected(tmp_path):
    init = write_run(tmp_path / "first")
    (tmp_path / "first" / "tokenizer").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"^no tokenizer found with .*; set data.tokenizer to its "):
        exported(tmp_path, init)
    assert (
        exported(tmp_path, init, data={"tokenizer": str(tmp_path / "moved")}) / "tokenizer.json"
    ).is_file()
