"""Print generated text token by token, each in the color of its depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from mom.metrics.depth import token_depths
from mom.model import MoMForCausalLM

SHADES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#2171b5", "#08306b")
"""Backgrounds from the least to the greatest depth, those of ``report.html``: also told apart in gray."""
_DARK = 5  # from this shade on, the text is white
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class DepthStreamer(BaseStreamer):
    """Prints tokens as they are generated, colored by effective depth: the blocks that the token itself ran through.

    A token runs through the model when the next one is computed, so it is printed one token late. Without a terminal,
    the text has no colors.

    Args:
        model: the model that generates; it must have routers.
        tokenizer: its tokenizer.
        console: where to print.

    Attributes:
        depths: depth of each token, those of the prompt included, in blocks.
    """

    def __init__(
        self, model: MoMForCausalLM, tokenizer: PreTrainedTokenizerBase, console: Console | None = None
    ) -> None:
        self.depths: list[float] = []
        self._model = model
        self._tokenizer = tokenizer
        self._console = console or Console(highlight=False)
        self._ids: list[int] = []
        self._shown = 0  # tokens printed
        self._text = ""  # their text

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Read the routing of every forward pass of the model in this context."""
        before = self._model.register_forward_pre_hook(_request_routing, with_kwargs=True)
        after = self._model.register_forward_hook(lambda model, inputs, output: self._measure(output))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def put(self, value: torch.Tensor) -> None:
        """Take the tokens of the prompt, [1, T], or the next token, [1]."""
        self._ids += value.flatten().tolist()

    def end(self) -> None:
        """Run the last token through the model, which needed no successor, and print it."""
        if len(self.depths) < len(self._ids):
            self.depths.clear()
            self._model(input_ids=torch.tensor([self._ids], device=self._model.device), use_cache=False)
        self._show(self._decode(len(self._ids)))
        self._console.print()

    def legend(self) -> Text:
        """Return the shades with their depths, for a terminal."""
        lowest, highest = _range(self._model)
        legend = Text("depth in blocks: ")
        for index in range(len(SHADES)):
            depth = lowest + (highest - lowest) * index / (len(SHADES) - 1)
            legend.append(f" {depth:.3g} ", _style(index))
        return legend

    def _measure(self, output: Any) -> None:
        depths = token_depths(output.routing, fixed_depth=self._model.config.fixed_depth)
        self.depths += depths["effective"][0].tolist()
        self._print()

    def _print(self) -> None:
        """Print the tokens whose depth is known, but those that end within a character only with the rest of it."""
        while self._shown < min(len(self._ids), len(self.depths)):
            self._shown += 1
            text = self._decode(self._shown)
            if not text.endswith(_INCOMPLETE):
                self._show(text)

    def _decode(self, count: int) -> str:
        text = self._tokenizer.decode(self._ids[:count], skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _show(self, text: str) -> None:
        """Print what of the text is new, in the color of the last token's depth."""
        lowest, highest = _range(self._model)
        fraction = (self.depths[self._shown - 1] - lowest) / max(highest - lowest, 1e-9)
        style = _style(round(fraction * (len(SHADES) - 1)))
        self._console.print(Text(text[len(self._text) :], style, end=""), end="", soft_wrap=True)
        self._text = text


def _request_routing(
    model: Any, inputs: Sequence[Any], options: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    return inputs, {**options, "output_routing": True}


def _range(model: MoMForCausalLM) -> tuple[int, int]:
    return model.config.fixed_depth, model.config.graph_depth


def _style(shade: int) -> Style:
    return Style(color="#ffffff" if shade >= _DARK else "#10151a", bgcolor=SHADES[shade])
