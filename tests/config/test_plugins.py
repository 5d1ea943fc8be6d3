"""Plugins are imported before the request is checked, by option or entry point, and never for a checkpoint."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from mom.config import bind, plugins
from mom.config.composition import composed
from mom.config.plugins import load_plugins, plugins_in
from mom.errors import UsageError
from mom.model import registry
from tests.helpers import processes
from tests.helpers.processes import ROOT, Ended

ROUTER = """
from mom.model.registry import register_router
from mom.model.options import option
from mom.model.routers import RouterKind


@register_router("mine")
class Mine(RouterKind):
    mine_width: int = option(3, "a width", group="router", ge=1)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module that registers a router, and make it importable during the test."""
    (tmp_path / "my_plugin.py").write_text(ROUTER)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_plugin"
    registry.routers.pop("mine", None)
    sys.modules.pop("my_plugin", None)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["plugins=[a.b,c]", "seed=1"], ["a.b", "c"]),
        (["+plugins=[a]"], ["a"]),
        (["plugins=[a],[b]"], ["a", "b"]),
        (["plugins=null"], []),
        (["seed=[1", "plugins=[a]"], []),
        (["plugins"], []),
        ([], []),
    ],
)
def test_plugins_are_found_on_the_command_line(overrides: list[str], names: list[str]) -> None:
    assert plugins_in(overrides) == names


def test_a_plugins_router_is_a_choice_of_its_group(mine: str) -> None:
    line = [f"plugins=[{mine}]", "router=mine", "router.mine_width=5"]
    config = bind(composed(ROOT / "conf", line))

    assert config.plugins == [mine]
    assert config.model_config(300).router_kind.mine_width == 5
    with pytest.raises(UsageError, match=r"^router\.mine_width must be an integer of at least 1, got 0$"):
        bind(composed(ROOT / "conf", [*line[:2], "router.mine_width=0"]))


def test_plugins_of_a_file_are_imported_before_the_request_is_checked(mine: str) -> None:
    request = {"run_dir": "x", "plugins": [mine], "router": {"router": "mine", "router_prior": "ordered"}}

    assert bind(request).router["router"] == "mine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
        ("raise RuntimeError('first\\nsecond')", "first"),
        ("this is no Python", "invalid syntax"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=rf"^cannot import plugin broken_plugin: {reason}") as raised:
        load_plugins(["broken_plugin"])
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match=r"^cannot import plugin no_such_plugin: No module named"):
        bind({"run_dir": "x", "plugins": ["no_such_plugin"]})
    with pytest.raises(UsageError, match=r"^plugins must be a list of strings, got 3$"):
        bind({"run_dir": "x", "plugins": 3})


def test_installed_packages_bring_plugins_as_entry_points(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "mom.plugins"
        return [EntryPoint("mine", mine, group)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    load_plugins([])
    assert "mine" in registry.routers

    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint("other", "no_such_plugin", group)])
    with pytest.raises(UsageError, match=r"^cannot import plugin no_such_plugin \(entry point other\): "):
        load_plugins([])


def run(folder: Path, *line: str) -> Ended:
    """Run the command line in its own process."""
    return processes.run([str(ROOT / "run.py"), *line], folder, folder / "output.txt")


SMOKE = ("experiment=smoke", "task.plain_steps=0", "task.baseline=false", "callbacks=none", "logger=none")


def test_a_router_of_your_own_trains_and_needs_its_plugin_to_load(tmp_path: Path) -> None:
    line = ("plugins=[examples.bilinear_router]", "router=bilinear", "router.bilinear_rank=4")
    done = run(tmp_path, *line, *SMOKE, "router.router_dim=null", "run_dir=run")

    assert done.code == 0, done.output
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["plugins"], written["router"]["bilinear_rank"]) == (["examples.bilinear_router"], 4)
    weights = next((tmp_path / "run").rglob("last.ckpt"))
    load = ("task=generate", f"init={weights}", "prompt=x", "task.max_new_tokens=2")
    failed = run(tmp_path, *load)
    assert failed.code == 2
    assert failed.output.startswith(f"error: cannot load init={weights}: router must be one of ")
    assert failed.output.endswith(
        "got bilinear; if a plugin registers it, import that with plugins=[my_package.my_module]\n"
    )
    assert run(tmp_path, *load, line[0]).code == 0


def test_a_third_pool_through_hydra(tmp_path: Path) -> None:
    pools = "{attention: {}, conv: {kind: causal_conv, num_modules: 2, top_k: 1, kernel_size: 3}, ffn: {}}"
    line = ("plugins=[examples.causal_conv]", f"model.pools={pools}")
    done = run(tmp_path, *line, *SMOKE, "run_dir=run")
    assert done.code == 0, done.output

    assert run(tmp_path, *line, "task=cost", "task.measure_memory=false", "run_dir=cost").code == 0
    two = json.loads((tmp_path / "cost" / "summary.json").read_text())["parameters"]
    assert run(tmp_path, "task=cost", "task.measure_memory=false", "run_dir=plain").code == 0
    assert two > json.loads((tmp_path / "plain" / "summary.json").read_text())["parameters"]


def test_a_sweep_passes_its_plugins_to_its_jobs(tmp_path: Path) -> None:
    line = ("-m", "plugins=[examples.bilinear_router]", "router=bilinear,linear", "router.router_dim=null")
    done = run(tmp_path, *line, *SMOKE, "hydra.sweep.dir=s")

    assert done.code == 0, done.output
    assert "val/loss" in json.loads((tmp_path / "s" / "0" / "summary.json").read_text())


def test_an_export_of_your_own_kind_needs_its_plugin_and_cannot_name_it(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mom.interop import load_model
    from tests.helpers.models import small_model

    registry.routers["bilinear"] = importlib.import_module("examples.bilinear_router").Bilinear
    small_model(router="bilinear", bilinear_rank=4).save_pretrained(tmp_path / "export")
    del registry.routers["bilinear"]
    path = tmp_path / "export" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plugins": [mine]}))

    with pytest.raises(
        UsageError, match=r"^cannot load init=.*export: router must be one of .*got bilinear; "
    ) as raised:
        load_model(str(tmp_path / "export"))
    assert "plugins=[my_package.my_module]" in str(raised.value)
    assert mine not in sys.modules and "mine" not in registry.routers
