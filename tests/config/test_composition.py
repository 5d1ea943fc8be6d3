"""Hydra's errors, each told as one line about one option."""

from __future__ import annotations

from pathlib import Path

import pytest

from mom.config.composition import composed, explain, is_composition_error

CONF = Path(__file__).resolve().parents[2] / "conf"

EXPLAINED = [
    (["model.topk=2"], "model.topk: 2; no such option, did you mean model.top_k?"),
    (["model=mom_tny"], "model: mom_tny; did you mean mom_tiny? one of "),
    (["router=zzz"], "router: zzz; one of gru, linear, mlp, random, sequential"),
    (["experiment=smok"], "experiment: smok; did you mean smoke? one of "),
    (["modl=mom_tiny"], "modl: mom_tiny; no such option, did you mean model?"),
    (["experiments=smoke"], "experiments: smoke; no such option, did you mean experiment?"),
    (["lr=1"], "lr: 1; no such option, did you mean optimizer.lr?"),
    (["modl.d_model=1"], "modl.d_model: 1; no such option, did you mean model.d_model?"),
    (["zzz=1"], "zzz: 1; no such option; there are model, "),
    (["data.zzz=1"], "data.zzz: 1; no such option; data has "),
    (["~zzz"], "zzz: null; no such option; "),
    (
        ["logger=tensorboard", "logger.tensorboard.named=x"],
        "logger.tensorboard.named: x; no such option, did you ",
    ),
    (["+seed=1"], "seed: 1; the same without the leading +"),
    (["launcher.num_workers=2"], "launcher.num_workers: 2; no such option without launcher=joblib"),
    (["search.num_trials=3"], "search.num_trials: 3; no such option without search=tpe"),
    (["logger.wandb.project=x"], "logger.wandb.project: x; no such option without logger=wandb"),
    (
        ["callbacks.early_stopping.patience=2"],
        "callbacks.early_stopping.patience: 2; no such option without callbacks=finetune",
    ),
    (["trainer.devices.zzz=1"], "trainer.devices.zzz: 1; "),
    (["experiment=[smoke,foo]"], "experiment: foo; one of "),
    (["experiment=papr/glue"], "experiment: papr/glue; did you mean paper/glue? one of "),
    (["seed"], "seed: no value; group=choice or option=value"),
    ([""], "'': no value; "),
    (["=3"], "'': =3; the name of an option before the ="),
    (["seed=[1"], "seed: [1; a value that can be read"),
    (["seed=1,2"], "seed: 1,2; one value, "),
    (["seed=range(3)"], "seed: range(3); one value, "),
    (["model={topk: 3}"], "model.topk: {topk: 3}; no such option, did you mean model.top_k?"),
    (["model@other=mom_tiny"], "model@other: mom_tiny; model=mom_tiny, without the @"),
    (["model.d_model.x=1"], "model.d_model.x: 1; "),
]


@pytest.mark.parametrize(("overrides", "message"), EXPLAINED)
def test_a_wrong_line_names_the_option_what_was_given_and_what_is_allowed(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(Exception) as raised:
        composed(CONF, overrides)

    assert is_composition_error(raised.value)
    told = str(explain(raised.value, CONF, overrides))  # type: ignore[arg-type]
    assert told.startswith(message)
    assert "\n" not in told


def test_an_error_nobody_foresaw_is_still_one_line() -> None:
    told = str(explain(ValueError("one\n  two"), CONF, []))

    assert told == "request: one; see python run.py --help"
