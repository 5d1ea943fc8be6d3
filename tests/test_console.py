"""Tables in files and on terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from mom.console import build_table, can_redraw, print_table


@pytest.mark.parametrize(("is_terminal", "is_whole"), [(False, True), (True, False)])
def test_a_file_holds_the_whole_table_and_a_terminal_what_fits(is_terminal: bool, is_whole: bool) -> None:
    table = Table("a", "b")
    table.add_row("x" * 70, "y" * 70)
    text = io.StringIO()
    print_table(table, Console(file=text, force_terminal=is_terminal, width=80))

    assert ("x" * 70 in text.getvalue() and "y" * 70 in text.getvalue()) == is_whole


@pytest.mark.parametrize("width", [70, 80])
def test_a_narrow_terminal_breaks_words_before_numbers(width: int) -> None:
    headings = ["pool", "attribute", "tokenizer_vocab_size", "entropy", "information", "most frequent"]
    row = ["attention", "previous token id", "65536", "1.3246", "0.1337", "34.25%"]
    text = io.StringIO()
    table = build_table(headings, [row], texts=2)
    print_table(table, Console(file=text, force_terminal=True, color_system=None, width=width))
    lines = text.getvalue().splitlines()

    assert max(map(len, lines)) <= width
    for whole in ("attention", "previous", "65536", "1.3246", "0.1337", "34.25%", "information", "vocab_"):
        assert whole in text.getvalue()


def test_a_table_without_room_is_wider_than_the_terminal() -> None:
    text = io.StringIO()
    table = build_table(["a", "b"], [["123456.7890", "123456.7890"]], texts=0)
    print_table(table, Console(file=text, force_terminal=True, color_system=None, width=20))

    assert text.getvalue().count("123456.7890") == 2


def test_a_line_is_redrawn_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks set FORCE_COLOR, and a command after ``!`` has a terminal there."""
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert can_redraw(terminal)

    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not can_redraw(io.StringIO())
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not can_redraw(terminal)
    monkeypatch.delenv("JPY_PARENT_PID")
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(terminal)
