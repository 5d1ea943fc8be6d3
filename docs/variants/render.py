"""Write the reproduction cards, the pages of this folder, from ``cards.yaml``: ``python docs/variants/render.py``."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

import mom

FOLDER = Path(__file__).resolve().parent
WIDTH = 120
NOTE = "<!-- Written by docs/variants/render.py from cards.yaml: change that file, not this page. -->"
INDEX = """\
# Reproduction cards

Each card says what a variant is, how it differs from the paper it is named after, which tests check that it computes
what the card says, and what was measured. [Presets](../presets.md) compares sizes and costs.

| card | after | laptop scale |
|---|---|---|
{rows}

- **Deviations** are those known to us. Each card says what of the paper it was checked against.
- **Tests** compare with an independent implementation, or check the definition. Every change must pass them, so the
  known-good version is the one that this page belongs to: `mom.__version__` {version}.
- **Paper scale** is that of the Mixture-of-Modules paper: 12 layers of GPT-2 small's width, 1,024 tokens, OpenWebText,
  524,288 tokens per step ([recipe](../scaling.md#the-papers-recipe)). It needs GPUs. None of these runs has been done
  yet.
- **Laptop scale** is `experiment=from_scratch`: 8 layers of width 32 on Python's standard library, 3,000 steps, three
  to ten minutes a run on one core ([results](../results.md#text)).
- **Earlier records** are listed because nothing else was measured for a variant, not because they show how good it is.
  Most are from studies that are [withdrawn](../results.md#what-was-withdrawn-and-why) as evidence about routing.
"""


def load() -> dict[str, dict[str, Any]]:
    """Return the cards by name."""
    return yaml.safe_load((FOLDER / "cards.yaml").read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """Return the content of every page by its file name."""
    cards = load()
    rows = "\n".join(
        f"| [{card['title']}]({name}.md) | {short(card['paper'])} | {'not ' * (not card['laptop']['result'])}measured |"
        for name, card in cards.items()
    )
    index = INDEX.format(rows=rows, version=mom.__version__)
    return {"README.md": f"{NOTE}\n\n{index}"} | {f"{name}.md": page(card) for name, card in cards.items()}


def short(paper: str) -> str:
    """Return the authors and year of a paper."""
    match = re.match(r".*? \d{4}(?=,)", paper)
    assert match is not None, paper
    return match[0]


def page(card: dict[str, Any]) -> str:
    """Return the page of one card."""
    authors = short(card["paper"])
    title, result = card["paper"].removeprefix(f"{authors}, "), card["laptop"]["result"]
    parts = [
        NOTE,
        f"# {card['title']}",
        filled(f"After {authors}, [{title}]({card['link']}). Checked against: {card['read']}"),
        filled(f"Known-good version: `mom.__version__` {mom.__version__}, which passes the tests below."),
        "## The paper's rule",
        filled(card["rule"]),
        textwrap.indent(card["equation"].rstrip(), "    "),
        "## What this code does",
        filled(card["code"]),
        "## Known deviations",
        "\n".join(filled(f"- {text}", "  ") for text in card["deviations"]),
        "## Tests",
        *tests(card),
        "## Paper scale",
        block(card["paper_scale"]["command"]),
        filled(card["paper_scale"]["note"]),
        "## Laptop scale",
        block(card["laptop"]["command"]),
        filled(
            f"{result[:1].upper()}{result[1:]} ({source(card['laptop'])})." if result else "Not measured."
        ),
    ]
    if earlier := card.get("earlier"):
        withdrawn = (
            ", [withdrawn](../results.md#what-was-withdrawn-and-why) as evidence about routing"
            * earlier["withdrawn"]
        )
        parts.append(
            filled(f"An earlier record{withdrawn}: validation loss {earlier['result']} ({source(earlier)}).")
        )
    return "\n\n".join(parts) + "\n"


def tests(card: dict[str, Any]) -> list[str]:
    """Return the list of a card's tests, and the command that runs them."""
    lines, names = [], []
    for test in card["tests"]:
        path, name = test["test"].split("::")
        case = f"[{test['case']}]" if "case" in test else ""
        tolerances = [f"`{test['within']}`"] if "within" in test else []
        tolerances += [f"gradients {test['gradients']} of the largest entry"] if "gradients" in test else []
        within = f" ({'; '.join(tolerances)})" if tolerances else ""
        lines.append(filled(f"- Against {test['against']}{within}: `{name}{case}`", "  "))
        names.append(f"'{path}::{name}{case}'")
    command = " \\\n  ".join(["python -m pytest", *names])
    return ["\n".join(lines), "To run them:", textwrap.indent(command, "    ")]


def source(measured: dict[str, Any]) -> str:
    """Return the link to the page that a result is taken from."""
    where = measured["source"]
    label = where["page"].removesuffix(".md").replace("-", " ")
    return f"[{label}](../{where['page']}#{where['section']})"


def block(command: str) -> str:
    """Return a command as an indented block of at most 80 columns, unless a word is longer."""
    words = re.findall(r"(?:'[^']*'|\S)+", command)
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < 72:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return textwrap.indent(" \\\n  ".join(lines), "    ")


def filled(text: str, indent: str = "") -> str:
    """Return a paragraph wrapped to the width of the pages."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
