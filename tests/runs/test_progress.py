"""A line of progress: it fits 80 columns, appears after two seconds, and reports once a minute elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mom.runs.console_log import kept
from mom.runs.progress import ProgressLine, duration, track

NUMBERS = ["loss 3.412", "val 3.512", "12,345 tok/s", "depth 11.25"]


@pytest.mark.parametrize("width", [30, 40, 60, 79, 80, 120])
@pytest.mark.parametrize("total", [None, 500, 1_000_000])
def test_the_line_fits_the_width(width: int, total: int | None) -> None:
    line = ProgressLine("baseline", total)
    line.update(240, NUMBERS, 3723)
    text = line.text(width)

    assert len(text) <= width
    assert "240" in text
    if width >= 79:
        assert "loss 3.412" in text and "1:02:03 left" in text
    if width >= 79 and total:
        assert "━" in text or "─" in text


def test_short_steps_show_nothing_and_long_ones_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    line = ProgressLine("predicting", 100, clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 2.0
        line.update(done)
    line.close()

    assert capsys.readouterr().out.splitlines() == [
        "predicting  30/100  2:20 left",
        "predicting  60/100  1:20 left",
        "predicting  90/100  0:20 left",
    ]
    assert list(track(range(3), "quick", 3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_in_a_terminal_it_is_one_line_that_is_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mom.runs.progress.Console", lambda **options: Console(**options, width=80))
    monkeypatch.setattr("mom.runs.progress.can_redraw", lambda stream: True)
    now = [0.0]
    with kept(tmp_path / "run.log", "started"):
        with ProgressLine("mom", 500, clock=lambda: now[0], is_kept=True) as line:
            for done in range(0, 501, 50):
                now[0] += 30.0
                line.update(done, NUMBERS)
        print("after")
    out = capsys.readouterr().out

    assert out.count("\n") == 2 and "500/500" in out
    log = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    # Once a minute a line, then what the redrawn line showed last.
    assert [text.split()[1] for text in log[1:-1]] == [
        f"{done}/500" for done in (50, 150, 250, 350, 450, 500)
    ]
    assert (log[0], log[-1]) == ("started", "after")
    assert not any("\x1b" in text or "\r" in text for text in log)


def test_the_log_holds_what_the_terminal_shows_in_the_end(tmp_path: Path) -> None:
    terminal = io.StringIO()
    before = sys.stdout
    sys.stdout = terminal
    try:
        with kept(tmp_path / "run.log", "$ mom"):
            print("\x1b[31mred\x1b[0m", "plain")
            print("10%\r20%", end="")
            print("\r100%")
            print("dos\r\nend", end="")
        assert sys.stdout is terminal
    finally:
        sys.stdout = before

    assert terminal.getvalue() == "\x1b[31mred\x1b[0m plain\n10%\r20%\r100%\ndos\r\nend"
    assert (tmp_path / "run.log").read_text() == "$ mom\nred plain\n100%\ndos\nend\n"
    with kept(tmp_path / "missing" / "run.log", "$ mom"):
        assert sys.stdout is before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (187_200, "2 d 4 h"), (-1, "0:00")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
