"""The token path viewer in a real browser, opened from a file and compared with its traces.

Chromium is found as ``chromium`` on the path. Where there is none these tests are skipped, which pytest's summary
shows; under CI (``CI=true``) they fail instead.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mom.analysis.report.page import Headline, PoolTable, Table, pieces, render
from mom.analysis.traces import Traces
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.texts import some_texts
from tests.helpers.traces import recorded, some_ids

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
NASTY = "def f(x):\n\treturn '</script><script>alert(1)</script>' <b>模块</b> & 😀\n\n"


@dataclass
class Opened:
    """A page, its traces, and its console messages and requests since it was opened."""

    page: Page
    traces: Traces
    texts: list[str]
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        message = "no chromium on the path: the viewer was not tested"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


def write_report(folder: Path, ids: np.ndarray, **changes: Any) -> tuple[Path, Traces, list[str]]:
    tokenizer = small_tokenizer()
    traces, model = recorded(folder / "traces", ids, vocab_size=VOCABULARY, length=32, **changes)
    row = {"choice": 1, "name": "1", "full_name": "FFN 1", "numbers": [], "tokens": []}
    page = render(
        traces,
        tokenizer,
        title="A report",
        subtitle="a model of small size on some text",
        headlines=[Headline("1.234 nats/token", "loss", "On some tokens. " * 8)] * 3,
        facts=[("weights", "a very long name " * 8, "")],
        pools=[PoolTable("FFN", "ffn", model.config.num_stages - 1, [], [row])],
        module_notes=[],
        choices=[
            Table("Value", "A note. " * 20, ["pool", *"abcdefgh"], [["FFN", *["+0.1234 ± 0.0012"] * 8]])
        ],
        figures=[],
        footer="",
        num_tokens=len(ids),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path, traces, pieces(tokenizer, ids.tolist())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traces, list[str]]:
    ids = np.array(small_tokenizer()(NASTY + " ".join(some_texts(3)))["input_ids"])
    return write_report(tmp_path_factory.mktemp("report"), ids, num_stages=2, num_ffn_modules=4)


@pytest.fixture
def opened(browser: Browser, report: tuple[Path, Traces, list[str]]) -> Iterator[Opened]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        report_page = Opened(context.new_page(), *report[1:])
        report_page.page.on("console", lambda message: report_page.complaints.append(message.text))
        report_page.page.on("pageerror", lambda error: report_page.complaints.append(str(error)))
        report_page.page.on(
            "dialog", lambda dialog: (report_page.complaints.append(dialog.message), dialog.dismiss())
        )
        report_page.page.on("request", lambda request: report_page.requests.append(request.url))
        report_page.page.goto(report[0].as_uri())
        yield report_page
        assert report_page.complaints == []
        assert report_page.requests == [report[0].as_uri()]


def path_of(traces: Traces, token: int) -> dict[tuple[int, int, str], list[tuple[int, float]]]:
    """Return a token's choices and weights by stage, round, and pool, from the Parquet file."""
    found: dict[tuple[int, int, str], list[tuple[int, float]]] = {}
    for row in traces.routing(token=token).to_pylist():
        place = (row["stage"], row["round"], row["kind"])
        found.setdefault(place, []).append((row["choice"], row["weight"]))
    return found


def shown_path(page: Page) -> list[tuple[str, list[list[str]]]]:
    """Return the table's rows: the name of each round, and the lines of its cells."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#path tr[data-round]")].map((row) => [
            row.querySelector("th").textContent,
            [...row.querySelectorAll("td")].map((cell) => [...cell.querySelectorAll(".choice")].map(
                (line) => [...line.children].map((node) => node.textContent).join(" "))),
        ])"""
    )


def expected_path(traces: Traces, token: int) -> list[tuple[str, list[list[str]]]]:
    choices = path_of(traces, token)
    rows = []
    for stage, number in sorted({place[:2] for place in choices}):
        cells = []
        for kind in ("attention", "ffn"):
            skip = traces.header.num_modules(kind)
            lines = choices[stage, number, kind]
            if all(choice == skip for choice, _ in lines):
                cells.append(["SKIP nothing"])
                continue
            cells.append([f"{'SKIP' if choice == skip else choice} {weight:.3f}" for choice, weight in lines])
        rows.append((f"{stage}.{number}", cells))
    return rows


def same_path(shown: list[Any], expected: list[Any]) -> None:
    """Compare paths; weights may differ in the last digit, since the page stores them in 65,534 steps."""
    assert [name for name, _ in shown] == [name for name, _ in expected]
    for (_, cells), (_, wanted) in zip(shown, expected, strict=True):
        for lines, others in zip(cells, wanted, strict=True):
            assert [line.split()[0] for line in lines] == [line.split()[0] for line in others]
            if lines == ["SKIP nothing"]:
                assert others == lines
                continue
            weights, reference = ([float(line.split()[1]) for line in side] for side in (lines, others))
            assert weights == pytest.approx(reference, abs=1.01e-3)


def test_the_text_is_there_token_by_token(opened: Opened) -> None:
    shown = opened.page.evaluate(
        "() => [...document.querySelectorAll('.token')].map((node) => node.textContent)"
    )

    assert len(shown) == len(opened.texts)
    for text, token_text in zip(shown, opened.texts, strict=True):
        assert text == token_text.replace("\n", "⏎\n")
    assert "</script>" in "".join(opened.texts)
    windows = opened.page.locator(".window").count()
    assert windows == -(-len(opened.texts) // 32)


def test_a_click_shows_the_path_of_the_trace(opened: Opened) -> None:
    for token in (3, 70):
        opened.page.locator(f"#t{token}").click()

        same_path(shown_path(opened.page), expected_path(opened.traces, token))
        assert opened.page.get_attribute(f"#t{token}", "aria-selected") == "true"
        assert opened.page.locator("[aria-selected=true]").count() == 1
        row = opened.traces.tokens().slice(token, 1).to_pylist()[0]
        details = opened.page.inner_text("#path dl")
        assert f"{row['weighted_depth']:.2f}" in details and f"{row['loss']:.2f}" in details
        assert f"Token {token} of" in opened.page.inner_text("#status")


@pytest.mark.parametrize(
    ("kind", "module", "where", "first", "took"),
    [
        ("ffn", "3", "r5", False, lambda row: row["stage"] == 1 and row["round"] == 1 and row["choice"] == 3),
        (
            "ffn",
            "4",
            "r2",
            True,
            lambda row: row["round"] == 2 and row["choice"] == 4 and row["place"] == row["stage"] == 0,
        ),
        ("attention", "0", "s1", True, lambda row: row["stage"] == 1 and row["choice"] == row["place"] == 0),
    ],
)
def test_a_filter_finds_the_tokens_that_the_rows_list(
    opened: Opened, kind: str, module: str, where: str, first: bool, took: Callable[[dict[str, Any]], bool]
) -> None:
    page = opened.page
    page.select_option("#filter-kind", kind)
    page.select_option("#filter-round", where)
    page.select_option("#filter-module", module)
    page.set_checked("#filter-first", first)
    expected = sorted({row["token"] for row in opened.traces.routing(kind=kind).to_pylist() if took(row)})
    marked = page.evaluate(
        "() => [...document.querySelectorAll('.match')].map((node) => Number(node.id.slice(1)))"
    )

    assert marked == expected
    assert 0 < len(expected) < len(opened.texts)
    assert page.inner_text("#status").startswith(f"{len(expected)} of {len(opened.texts)} tokens took ")
    page.click("#match-next")
    after = next((index for index in expected if index > 0), expected[0])
    assert page.get_attribute(f"#t{after}", "aria-selected") == "true"
    page.click("#match-previous")
    before = [index for index in expected if index < after]
    assert page.get_attribute(f"#t{(before or expected)[-1]}", "aria-selected") == "true"
    page.click("#filter-clear")
    assert page.locator(".match").count() == 0
    assert page.is_disabled("#match-next")


def test_a_module_of_the_table_filters_too(opened: Opened) -> None:
    opened.page.click("button.show")
    taken = Counter(
        row["token"]
        for row in opened.traces.routing(kind="ffn", stage=1, choice=1).to_pylist()
        if row["place"] == 0
    )
    expected = {token for token, times in taken.items() if times >= 2}  # of four rounds

    assert opened.page.locator(".match").count() == len(expected) > 0
    assert opened.page.input_value("#filter-round") == "m1"


def test_the_keyboard_reaches_everything(opened: Opened) -> None:
    page, last = opened.page, len(opened.texts) - 1

    def focused() -> str:
        return page.evaluate("() => document.activeElement.id")

    page.focus("#t0")
    for key, place in (("ArrowRight", "t1"), ("ArrowRight", "t2"), ("ArrowLeft", "t1"), ("PageDown", "t32")):
        page.keyboard.press(key)
        assert focused() == place
    page.keyboard.press("Enter")
    same_path(shown_path(page), expected_path(opened.traces, 32))
    for key, place in (("End", f"t{last}"), ("ArrowRight", f"t{last}"), ("Home", "t0"), ("ArrowLeft", "t0")):
        page.keyboard.press(key)
        assert focused() == place
    page.keyboard.press("ArrowDown")
    below = page.evaluate(
        "() => document.activeElement.getBoundingClientRect().top"
        " > document.getElementById('t0').getBoundingClientRect().top"
    )
    assert below
    page.keyboard.press("ArrowUp")
    assert page.evaluate(
        "() => document.activeElement.getBoundingClientRect().top"
        " === document.getElementById('t0').getBoundingClientRect().top"
    )
    # The text has a single tab stop, followed by the path.
    assert page.locator(".token[tabindex='0']").count() == 1
    page.keyboard.press("Tab")
    assert focused() == "path"


def test_a_screen_reader_gets_names_and_announcements(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#text[role=listbox] [role=group] [role=option]").count() == len(opened.texts)
    assert page.get_attribute("#status", "aria-live") == "polite"
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('.token')].filter("
        "(node) => !node.textContent.replaceAll('⏎', '').trim() && !node.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    assert page.evaluate("() => [...document.images].filter((node) => !node.alt).length") == 0
    for name in ("Color by", "pool", "module", "in", "as first choice"):
        assert page.get_by_label(name, exact=True).count() == 1
    newline = next(index for index, text in enumerate(opened.texts) if "\n" in text and not text.strip())
    assert "line end" in (page.get_attribute(f"#t{newline}", "aria-label") or "")


def test_colors_have_a_legend(opened: Opened) -> None:
    page = opened.page
    choices = page.evaluate("() => [...document.getElementById('color').options].map((node) => node.text)")
    assert choices[0].startswith("effective depth") and choices[3].startswith("loss")
    for label in choices:
        page.select_option("#color", label=label)
        used = page.evaluate(
            "() => [...new Set([...document.querySelectorAll('.token')].map((node) => node.className.split(' ')[1]))]"
        )
        legend = page.evaluate(
            "() => [...document.querySelectorAll('#legend .swatch')].map((node) => node.className.split(' ')[1])"
        )
        assert set(used) - {"none"} <= set(legend)
        assert 1 <= len(legend) <= 7
    # Only the loss at the end of a window has no value.
    assert page.locator(".token.none").count() == page.locator(".window").count()


def test_the_next_token_and_the_predicted_one_are_shown(opened: Opened) -> None:
    page, rows = opened.page, opened.traces.tokens().to_pylist()
    seen = set()
    for token in (3, 10, 31, *(n for n, row in enumerate(rows) if row["next_id"] == row["predicted_id"])):
        page.locator(f"#t{token}").click()
        row, shown = rows[token], page.inner_text("#path")
        if row["loss"] is None:
            assert "Nothing is predicted after this token." in shown
            seen.add("end")
            continue
        shares = page.locator("#path .share").all_inner_texts()
        assert float(shares[0][:-1]) == pytest.approx(100 * math.exp(-row["loss"]), rel=0.06, abs=0.01)
        if row["next_id"] == row["predicted_id"]:
            assert "next token, as predicted" in shown and len(shares) == 1
            seen.add("right")
            break
        assert "predicted instead" in shown
        assert float(shares[1][:-1]) == pytest.approx(100 * row["predicted_probability"], rel=0.06, abs=0.01)
        assert row["predicted_probability"] > math.exp(-row["loss"])
        assert "; predicted “" in page.inner_text("#status")
        seen.add("wrong")
    assert seen >= {"wrong", "end"}


def test_a_tap_on_a_phone_shows_the_path_without_scrolling(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 360, "height": 640})
    for token in (5, 100):
        page.locator(f"#t{token}").click()
        for part in (f"#t{token}", "#path .next", "#path tr[data-round='0']", "#path tr[data-round='1']"):
            box = page.locator(part).bounding_box()
            assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 640, part
    # The rest of the path can be reached within its own box.
    assert page.evaluate("() => getComputedStyle(document.getElementById('path')).overflowY") == "auto"


def test_a_step_without_a_module_looks_like_nothing_done(browser: Browser, tmp_path: Path) -> None:
    path, traces, _ = write_report(tmp_path, some_ids(200, VOCABULARY), top_k=1)
    skipped = next(row for row in traces.routing().to_pylist() if row["choice"] == 3)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(path.as_uri())
        page.locator(f"#t{skipped['token']}").click()
        styles = page.evaluate(
            """() => Object.fromEntries(["skip", "ran"].map((kind) => {
                const line = document.querySelector(`#path .choice.${kind}`);
                const style = (node) => getComputedStyle(node);
                return [kind, line && [style(line).backgroundImage, style(line.firstChild).borderTopColor]];
            }))"""
        )
        assert styles["skip"] == ["none", "rgba(0, 0, 0, 0)"]
        if styles["ran"] is not None:
            assert "gradient" in styles["ran"][0] and styles["ran"][1] != "rgba(0, 0, 0, 0)"


def test_the_page_starts_with_numbers_and_a_path(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 360, "height": 640})
    values = page.locator(".headline .value")
    assert values.all_inner_texts() == ["1.234 nats/token"] * 3
    boxes = [values.nth(index).bounding_box() for index in range(3)]
    assert all(box is not None and box["y"] + box["height"] <= 640 for box in boxes)
    assert page.locator("#path tr[data-round]").count() == 8, "the first token is selected"
    assert page.locator(".match").count() == 0, "nothing is marked"


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_wider_than_the_screen(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 700})
    opened.page.locator("#t5").click()

    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_twenty_thousand_tokens(browser: Browser, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 20_000)
    path, traces, _ = write_report(tmp_path, ids, top_k=1, batch=64)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.locator(".token").count() == 20_000
        page.select_option("#filter-module", "2")
        page.select_option("#filter-round", "s0")
        page.set_checked("#filter-first", False)
        expected = {row["token"] for row in traces.routing(kind="attention", choice=2).to_pylist()}
        assert page.locator(".match").count() == len(expected)
        page.locator("#t19990").click()
        assert page.locator("#path tr[data-round]").count() == 4
