"""Tables in files and on terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from mom.console import print_table


@pytest.mark.parametrize(("is_terminal", "is_whole"), [(False, True), (True, False)])
def test_a_file_holds_the_whole_table_and_a_terminal_what_fits(is_terminal: bool, is_whole: bool) -> None:
    table = Table("a", "b")
    table.add_row("x" * 70, "y" * 70)
    text = io.StringIO()
    print_table(table, Console(file=text, force_terminal=is_terminal, width=80))

    assert ("x" * 70 in text.getvalue() and "y" * 70 in text.getvalue()) == is_whole
