"""Classes of the tokens of Python code, by the standard library's tokenizer."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CLASSES = ("keyword", "name", "number", "string", "operator", "comment", "space")
"""Classes by index; other tokens have index -1."""

_CLASS_OF = {
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.OP: "operator",
    tokenize.COMMENT: "comment",
}


def code_classes(pieces: Sequence[str], document: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each token of a model in :data:`CLASSES`, [n]; -1 where the text is not Python.

    A token has the class of its first character that is not white space, or ``space``. A document counts as Python if
    its text up to some line parses, at least half of it: the last one may be cut off.

    Args:
        pieces: the text that each token adds; "" for special tokens.
        document: the document of each token, ascending, [n].
    """
    classes = np.full(len(pieces), -1)
    edges = np.flatnonzero(np.diff(document, prepend=-1, append=-1)).tolist()
    for start, stop in pairwise(edges):
        own = pieces[start:stop]
        text = "".join(own)
        if (of_character := character_classes(text)) is None:
            continue
        offset = 0
        for index, piece in enumerate(own, start=start):
            begins = offset + len(piece) - len(piece.lstrip())
            offset += len(piece)
            if piece:
                classes[index] = of_character[begins] if begins < offset else CLASSES.index("space")
    return classes


def character_classes(text: str) -> NDArray[np.int64] | None:
    """Return the class of each character of Python code, or ``None`` if the text is not Python."""
    if not _is_python(text):
        return None
    lines = text.splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines)])
    classes = np.full(len(text), CLASSES.index("space"))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            name = _class_of(token)
            if name is not None and token.start[0] <= len(lines):
                start, stop = (starts[row - 1] + column for row, column in (token.start, token.end))
                classes[start:stop] = CLASSES.index(name)
    except (tokenize.TokenError, SyntaxError):
        pass  # the end of a document that is cut off
    return classes


def _class_of(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if tokenize.tok_name[token.type].startswith(("FSTRING", "TSTRING")):
        return "string"
    return _CLASS_OF.get(token.type)


def _is_python(text: str) -> bool:
    """Return whether a text is Python code, perhaps cut off at the end: its first half or more parses."""
    lines = text.splitlines(keepends=True)
    # A statement that is cut off begins at the last line without indentation, or at one before it.
    tops = [number for number, line in enumerate(lines) if line.strip() and not line[0].isspace()]
    for stop in [len(lines), *[number for number in reversed(tops[-3:]) if number > len(lines) / 2]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the text's own literals
            try:
                tree = ast.parse("".join(lines[:stop]))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
        # Prose of single words parses too; code defines, calls, assigns, or imports something.
        return any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in tree.body)
    return False
