"""The report's section on the routers' choices: its tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mom.analysis.choices import ALL_POOLS, Choices, Rows
from mom.analysis.report.page import ReportFigure, Table
from mom.metrics.choice_value import REPLACEMENTS
from mom.metrics.names import pool_label
from mom.plots import choices as figures

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def choice_tables(choices: Choices, num_windows: int) -> list[Table]:
    """Return the tables for which there is data; values were measured on ``num_windows`` windows."""
    tables = choices.tables()
    found = [
        _value_table(tables["choice_value"], num_windows),
        _regret_table(tables["regret"]),
        _path_table(tables["paths"]),
        _dependence_table(tables["dependence"], choices.facts()),
        _difficulty_table(tables["difficulty"]),
    ]
    return [table for table in found if table.rows]


def choice_figures(choices: Choices, run: str) -> dict[str, ReportFigure]:
    """Draw every figure for which there is data, by file name."""
    pools = tuple(choices.skips)
    drawn = {}
    if choices.values:
        drawn["choice_value"] = ReportFigure(
            figures.choice_value(choices.values, run=run, pools=pools),
            "Loss increase when the choices of one round are replaced, with standard errors over windows.",
            _describe_values(choices),
        )
    if choices.swaps:
        by_round = {key: regret for key, regret in choices.regrets.items() if key[1] is not None}
        drawn["regret"] = ReportFigure(
            figures.regret(by_round, run=run, pools=pools),
            "Another choice in one round: what the best one saves in hindsight, and what an arbitrary one costs.",
            "Lines by round: mean regret, and mean change over all other choices; regret.csv has the numbers.",
        )
    if any(item.round is not None for item in choices.dependence):
        drawn["dependence"] = ReportFigure(
            figures.dependence(choices.dependence, run=run, pools=pools),
            "Share of the choice's entropy that an attribute of the token determines, by round.",
            "Lines by round for each attribute; dependence.csv has the numbers.",
        )
    groups = [row for row in choices.depths if row.by != "loss"]  # depth by loss has a figure of its own
    if groups:
        drawn["depth_by_group"] = ReportFigure(
            figures.depth_by_group(groups, run=run),
            "Modules per token by group of tokens.",
            f"Bars. {'; '.join(f'{row.by} {row.group}: {row.modules_per_token:.2f}' for row in groups)}.",
        )
    return drawn


def _describe_values(choices: Choices) -> str:
    parts = [
        f"{_pool(value.kind)} {value.replacement}: {value.increase:+z.4f}"
        for value in choices.values
        if value.round is None
    ]
    return f"Lines by round for each replacement. Over all rounds, in nats per token: {'; '.join(parts)}."


def _value_table(rows: Rows, num_windows: int) -> Table:
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["round"] is None:
            error = "" if row["error"] is None else f" ± {row['error']:.4f}"
            cells.setdefault(row["kind"], {})[row["replacement"]] = f"{row['increase']:+z.4f}{error}"
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in REPLACEMENTS.items())
    return Table(
        "Value of the choice",
        f"Loss increase in nats per token, with its standard error over {num_windows} windows, when other choices "
        f"replace those of all rounds and everything else stays ({meanings}). Near 0: the choice does not matter.",
        ["pool", *REPLACEMENTS],
        [[_pool(kind), *(own[name] for name in REPLACEMENTS)] for kind, own in cells.items()],
    )


def _regret_table(rows: Rows) -> Table:
    columns: list[Column] = [
        ("pool", lambda row: _pool(row["kind"])),
        ("steps", _number("swaps", "{:,}")),
        ("better exists", _number("better", "{:.1%}")),
        ("regret", _number("regret", "{:.4f}")),
        ("other choice", _number("change", "{:+z.4f}")),
        ("too shallow", _number("too_shallow", "{:.1%}")),
        ("too deep", _number("too_deep", "{:.1%}")),
        ("wrong module", _number("wrong_module", "{:.1%}")),
    ]
    return _table(
        "Regret of a single choice",
        "On sampled tokens, each other choice in one step, all others staying: how often one had been better for this "
        "text, the nats that the best one saves (summed over the token and all later ones of its window, mean over "
        "steps), the mean change over all other choices, and how the router erred: it skipped, it did not skip, or it "
        "took another module. This is hindsight: no router knows the tokens to come.",
        columns,
        [row for row in rows if row["round"] is None],
    )


def _path_table(rows: Rows) -> Table:
    columns: list[Column] = [
        ("pools", lambda row: _pool(row["kind"])),
        ("tokens", _number("tokens", "{:,}")),
        ("complete", _number("complete", "{:.0%}")),
        ("better exists", _number("better", "{:.1%}")),
        ("gain", _number("gain", "{:.4f}")),
        ("own modules", _number("own_modules", "{:.2f}")),
        ("best modules", _number("best_modules", "{:.2f}")),
        ("swaps", _number("swaps", "{:.2f}")),
    ]
    return _table(
        "Best paths",
        "The best path of each sampled token in hindsight, among all its paths (complete) or by taking the best swap "
        "as long as one helps: how often it is better than the token's own, the nats that it saves, and the modules "
        "on both.",
        columns,
        rows,
    )


def _dependence_table(rows: Rows, facts: Mapping[str, float]) -> Table:
    columns: list[Column] = [
        ("pool", lambda row: _pool(row["kind"])),
        ("attribute", lambda row: row["attribute"].replace("_", " ")),
        ("entropy", _number("entropy", "{:.3f}")),
        ("information", _number("information", "{:z.3f}")),
        ("by chance", _number("chance", "{:.3f}")),
        ("share", _number("share", "{:z.1%}")),
        ("fixed choice", _number("fixed", "{:.1%}")),
        ("most frequent", _number("constant", "{:.1%}")),
    ]
    changes = [
        f"{_pool(name.split('/')[1])} {value:.1%}"
        for name, value in facts.items()
        if name.endswith("/round_changes")
    ]
    changed = f" Tokens that change their first choice from a round to the next: {', '.join(changes)}."
    return _table(
        "What the choice depends on",
        "Entropy of the first choice and its mutual information with an attribute of the token, in nats, mean over "
        "rounds. Share: (information − by chance) / (entropy − by chance), 100% if the attribute determines the "
        "choice. Fixed choice: tokens whose choice is the most frequent of their value in other windows, next to the "
        f"most frequent of all tokens.{changed if changes else ''}",
        columns,
        [row for row in rows if row["round"] is None],
    )


def _difficulty_table(rows: Rows) -> Table:
    columns: list[Column] = [
        ("by", lambda row: row["by"].replace("_", " ")),
        ("group", lambda row: row["group"]),
        ("tokens", _number("tokens", "{:,}")),
        ("loss", _number("loss", "{:.3f}")),
        ("effective depth", _number("effective_depth", "{:.2f}")),
        ("weighted depth", _number("weighted_depth", "{:.2f}")),
        ("modules", _number("modules_per_token", "{:.2f}")),
    ]
    return _table(
        "Depth against difficulty",
        "Mean depth by decile of the loss of the next token, and by what else is known about tokens.",
        columns,
        rows,
    )


def _table(title: str, note: str, columns: Sequence[Column], rows: Rows) -> Table:
    cells = [[write(row) for _, write in columns] for row in rows]
    return Table(title, note, [heading for heading, _ in columns], cells)


def _number(name: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "–" if row[name] is None else form.format(row[name])


def _pool(kind: str | None) -> str:
    return "all pools" if kind in (None, ALL_POOLS) else pool_label(str(kind))
