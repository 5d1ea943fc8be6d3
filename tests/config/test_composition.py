"""Hydra's errors are converted to one line about one option."""

from __future__ import annotations

from pathlib import Path

import pytest

from mom.config.composition import composed, explain, is_composition_error
from mom.config.renamed import ELSEWHERE

CONF = Path(__file__).resolve().parents[2] / "conf"

EXPLAINED = [
    (["model.topk=2"], "unknown option model.topk; did you mean model.top_k?"),
    (["model=mom_tny"], "model must be one of ", ", got mom_tny; did you mean mom_tiny?"),
    (
        ["router=zzz"],
        "router must be one of embedding, gru, linear, mlp, oracle, paper, random, sequential, got zzz",
    ),
    (["experiment=smok"], "experiment must be one of ", ", got smok; did you mean smoke?"),
    (["modl=mom_tiny"], "unknown option modl; did you mean model?"),
    (["experiments=smoke"], "unknown option experiments; did you mean experiment?"),
    (["lr=1"], "unknown option lr; did you mean optimizer.lr?"),
    (["epochs=3"], "unknown option epochs; did you mean task.epochs with task=finetune?"),
    (["stride=5"], "unknown option stride; did you mean task.stride with task=evaluate?"),
    (["top_k=2"], "unknown option top_k; did you mean model.top_k?"),
    (["model.hidden_size=64"], "unknown option model.hidden_size; did you mean model.d_model?"),
    (
        ["trainer.max_epochs=3"],
        "unknown option trainer.max_epochs; did you mean trainer.max_steps, or task.epochs with task=finetune?",
    ),
    (["modl.d_model=1"], "unknown option modl.d_model; did you mean model.d_model?"),
    (["zzz=1"], "unknown option zzz; the options are model, "),
    (["data.zzz=1"], "unknown option data.zzz; the options of data are "),
    (["~zzz"], "unknown option zzz; "),
    (
        ["logger=tensorboard", "logger.tensorboard.named=x"],
        "unknown option logger.tensorboard.named; did you mean ",
    ),
    (["prompt=once"], "prompt requires task=generate"),
    (["runs=outputs"], "runs requires task=compare or task=runs"),
    (["task.num_tokens=5"], "task.num_tokens requires task=analyze"),
    (["task=generate", "task.stride=5"], "task.stride requires task=evaluate"),
    (["+seed=1"], "seed already exists; omit the +"),
    (["launcher.num_workers=2"], "launcher.num_workers requires launcher=joblib"),
    (["search.num_trials=3"], "search.num_trials requires search=tpe"),
    (["logger.wandb.project=x"], "logger.wandb.project requires logger=wandb"),
    (
        ["callbacks.early_stopping.patience=2"],
        "callbacks.early_stopping.patience requires callbacks=finetune",
    ),
    (["task=cost", "of=gpt2_tiny"], "of was renamed to reference_model"),
    (["task=analyze", "task.removal=alone"], "task.removal was renamed to task.ablation"),
    (["trainer.devices.zzz=1"], "unknown option trainer.devices.zzz; did you mean trainer.devices?"),
    (["experiment=[smoke,foo]"], "experiment must be one of ", ", got foo"),
    (["experiment=papr/glue"], "experiment must be one of ", ", got papr/glue; did you mean paper/glue?"),
    (["seed"], "seed requires a value: group=choice or option=value"),
    ([""], "'' requires a value: "),
    (["=3"], "cannot parse =3: no option before the ="),
    (["seed=[1"], "cannot parse seed=[1; quote "),
    (["seed=1,2"], "seed must be a single value, got 1,2; "),
    (["seed=range(3)"], "seed must be a single value, got range(3); "),
    (["model={topk: 3}"], "unknown option model.topk; did you mean model.top_k?"),
    (["model@other=mom_tiny"], "unknown option model@other; did you mean model=mom_tiny?"),
    (["model.d_model.x=1"], "unknown option model.d_model.x; did you mean model.d_model?"),
]


@pytest.mark.parametrize(("overrides", "start", "end"), [(*case, "")[:3] for case in EXPLAINED])
def test_a_wrong_line_names_the_option_what_was_given_and_what_is_allowed(
    overrides: list[str], start: str, end: str
) -> None:
    with pytest.raises(Exception) as raised:
        composed(CONF, overrides)

    assert is_composition_error(raised.value)
    message = str(explain(raised.value, CONF, overrides))  # type: ignore[arg-type]
    assert message.startswith(start) and message.endswith(end)
    assert "\n" not in message


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_other_libraries_call_otherwise_exists_here(name: str) -> None:
    config = composed(CONF, ["task=finetune"])
    meant = [word.strip(",") for word in ELSEWHERE[name].split() if "." in word]

    assert meant
    for option in meant:
        group, key = option.split(".")
        assert key in config[group] and name.partition(".")[2] not in config[group]


def test_an_error_nobody_foresaw_is_still_one_line() -> None:
    message = str(explain(ValueError("one\n  two"), CONF, []))

    assert message == "cannot compose the configuration: one"


@pytest.mark.parametrize(
    ("overrides", "end"),
    [
        (["model=mom_small", "seed=1", "model.topk=2"], "did you mean model.top_k?"),
        (["callbacks.figures=null", "callbacks.figures.dp=1"], "did you mean callbacks.figures.dpi?"),
        (["~callbacks.figures", "callbacks.figures.dp=1"], "did you mean callbacks.figures.dpi?"),
    ],
)
def test_other_overrides_do_not_hide_the_option_that_was_meant(overrides: list[str], end: str) -> None:
    with pytest.raises(Exception) as raised:
        composed(CONF, overrides)

    assert str(explain(raised.value, CONF, overrides)).endswith(end)  # type: ignore[arg-type]
