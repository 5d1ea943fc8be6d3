"""Every file of the configuration: found, composed, bound; and the help that lists them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from mom.config import (
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainerConfig,
    bind,
)
from mom.config.composition import added_config_dir, composed
from mom.config.tasks import TASKS
from mom.model.options import options_of

CONF = Path(__file__).resolve().parents[1] / "conf"
# Hydra's own groups (help, logging) are composed with everything; shared/ is what a group's files share.
FILES = sorted(
    path.relative_to(CONF)
    for path in CONF.rglob("*.yaml")
    if path.parts[len(CONF.parts)] != "hydra" and path.parent.name != "shared" and path.parent != CONF
)
STUDIES = CONF.parent / "benchmarks" / "studies"
STUDY_FILES = sorted(
    path.relative_to(STUDIES) for path in STUDIES.rglob("*.yaml") if path.parent.name != "shared"
)
NEEDED = {
    "cluster/a100x64": ["task=cost"],
    "cluster/h100x8": ["task=cost"],
    "data/glue": ["task=finetune", "init=some.ckpt"],
    "data/xsum": ["task=finetune", "init=some.ckpt"],
    "data/text_to_text": ["task=finetune", "init=some.ckpt", "data.path=pairs.csv"],
    "data/classification": ["task=finetune", "init=some.ckpt", "data.path=rows.csv"],
    "data/text": ["data.path=some.txt"],
    "data/datasets": ["data.path=user/name"],
    "data/mixture": ["data.mixture={a: {corpus: python_stdlib}}"],
    "data/token_files": ["data.path=tokens"],
    "optimizer/torch": ["optimizer._target_=torch.optim.SGD"],
    "experiment/paper/glue": ["init=some.ckpt"],
    "experiment/study/web_text": ["data.path=some.txt"],
    "task/compare": ["runs=some_folder"],
    "task/upcycle": ["init=some.ckpt"],
    "task/evaluate": ["init=some.ckpt"],
    "task/analyze": ["ckpt=some.ckpt"],
    "task/export": ["init=some.ckpt"],
    "task/finetune": ["init=some.ckpt"],
    "task/generate": ["init=some.ckpt", "prompt=once"],
}


def choice(file: Path) -> str:
    return file.with_suffix("").as_posix()


def name_in_group(file: Path) -> str:
    """As it is written behind ``group=``; a choice may lie in a folder of the group."""
    return choice(file).partition("/")[2]


def compose_choice(file: Path) -> DictConfig:
    """The default request with this one choice, and what the choice needs to be given."""
    added = added_config_dir(STUDIES if file in STUDY_FILES else None)
    return composed(CONF, [*added, f"{file.parts[0]}={name_in_group(file)}", *NEEDED.get(choice(file), [])])


@pytest.mark.parametrize("file", [*FILES, *STUDY_FILES], ids=choice)
def test_every_choice_binds_and_can_be_built(file: Path) -> None:
    config = bind(compose_choice(file))

    assert config.run_dir
    if file.parts[0] != "trainer":  # its devices are not those of every machine
        config.check_buildable()


@pytest.mark.parametrize("file", [*FILES, *STUDY_FILES], ids=choice)
def test_every_choice_says_what_it_is(file: Path) -> None:
    lines = ((STUDIES if file in STUDY_FILES else CONF) / file).read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]

    assert comments
    assert lines.index(comments[0]) < 2


def test_the_default_request_binds_and_builds() -> None:
    config = bind(composed(CONF, []))

    config.check_buildable()
    assert config.model_config(4096).num_stages == 1


def test_every_option_can_be_given_without_a_plus() -> None:
    """Hydra refuses a key that no file names, so the files have to name every field."""
    config = composed(CONF, [])
    sections = (PretrainConfig, DataConfig, OptimizerConfig, TrainerConfig)
    wanted = {section.group: {field.name for field in dataclasses.fields(section)} for section in sections}
    wanted |= {group: set(options_of(group)) for group in ("model", "router")}

    assert {group: set(config[group]) for group in wanted} == wanted


def test_the_files_say_what_the_sections_default_to() -> None:
    config = bind(composed(CONF, []))
    bare = bind({"run_dir": "x"})
    quickstart = {"tokenizer_vocab_size": 300, "batch_size": 4}

    assert config.data == dataclasses.replace(bare.data, **quickstart)


def test_top_level_keys() -> None:
    groups = {"task", "model", "router", "data", "optimizer", "trainer", "callbacks", "logger", "launcher"}

    assert set(composed(CONF, [])) == groups | {
        "plugins",
        "seed",
        "init",
        "ckpt",
        "resume",
        "arm",
        "debug",
        "run_dir",
        "name",
        "tags",
        "notes",
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_task_takes_its_options_at_the_top(name: str) -> None:
    config = composed(CONF, [f"task={name}"])

    for option in TASKS[name].top_level:
        assert option in config and OmegaConf.is_interpolation(config.task, option), option


def test_many_loggers_are_the_single_ones() -> None:
    many = composed(CONF, ["logger=many"]).logger
    single = [composed(CONF, [f"logger={name}"]).logger for name in ("csv", "tensorboard", "wandb")]

    assert many == {name: node for logger in single for name, node in logger.items()}


def test_the_quickstart_is_what_the_defaults_are() -> None:
    assert composed(CONF, ["experiment=quickstart"]) == composed(CONF, [])


def test_an_option_on_the_line_wins_over_an_experiment() -> None:
    assert composed(CONF, ["experiment=smoke", "trainer.max_steps=7"]).trainer.max_steps == 7


def test_the_help_names_every_group_and_choice() -> None:
    text = (CONF / "hydra/help/all.yaml").read_text(encoding="utf-8")
    groups: dict[str, set[str]] = {}
    for file in FILES:
        groups.setdefault(file.parts[0], set()).add(name_in_group(file))
    for group, choices in groups.items():
        if group == "task":
            listed = re.findall(
                r"^    (\w+)  ", text.partition("Tasks")[2].partition("Groups")[0], re.MULTILINE
            )
        else:
            # A long list goes on in lines that are indented further.
            found = re.search(rf"^    {group} +(.*(?:\n {{19}}.*)*)$", text, re.MULTILINE)
            assert found is not None, group
            listed = re.split(r"  ", re.sub(r"\n +", " ", found[1]))[0].split(", ")
        assert set(listed) == choices, group


def test_the_help_names_every_top_level_option() -> None:
    text = (CONF / "hydra/help/all.yaml").read_text(encoding="utf-8")

    assert all(
        re.search(rf"^    {name} ", text, re.MULTILINE)
        for name in ("plugins", "seed", "init", "ckpt", "resume", "debug", "run_dir", "name", "tags", "notes")
    )
