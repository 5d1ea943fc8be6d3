"""Tokenizers: trained on the corpus, or any fast Hugging Face tokenizer by name or folder.

Whatever its origin a tokenizer comes out as a ``transformers.PreTrainedTokenizerFast`` with an end-of-text
token, which :mod:`mom.data.prepare` puts after every document.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.errors import RequestError, UsageError
from mom.runs.files import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from mom.model import MoMConfig
    from mom.runs.directory import RunDirectory

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

OPTION = "data.tokenizer"
END_OF_TEXT = "<|endoftext|>"

# A tokenizer is trained on at most this many UTF-8 bytes of text: the merges hardly change beyond it, while
# time and memory grow on.
TRAINING_BYTES = 32_000_000

# What a bare tokenizer.json may call its end of text, since nothing in the file says which token it is.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
# The two names under which GPT-2's vocabulary and merges are published.
_GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_ALLOWED = (
    "null to train one, the name of a Hugging Face tokenizer, or a folder that holds one "
    "(tokenizer.json, or encoder.json with vocab.bpe)"
)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a local folder or file, or by its name on the Hugging Face Hub.

    Args:
        name_or_path: a folder saved by ``save_pretrained``, a ``tokenizer.json``, a folder with GPT-2's
            ``encoder.json`` and ``vocab.bpe``, or a name such as ``gpt2``. Code that comes with a tokenizer
            is never run.

    Raises:
        RequestError: nothing there that could be loaded, no fast tokenizer, or no end-of-text token.
    """
    path = Path(name_or_path).expanduser()
    try:
        if path.is_file():
            tokenizer = _load_file(path)
        elif path.is_dir():
            tokenizer = _load_folder(path)
        elif re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name_or_path):
            tokenizer = _load_pretrained(name_or_path)
        else:
            raise RequestError(OPTION, f"{name_or_path} (not found)", _ALLOWED)
    except UsageError:
        raise
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and bare Exception here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RequestError(OPTION, f"{name_or_path} ({reason})", _ALLOWED) from error
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(OPTION, name_or_path, "a fast tokenizer, one that has a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise RequestError(OPTION, name_or_path, "a tokenizer with an end-of-text token (eos_token)")
    return tokenizer


def _load_pretrained(name_or_path: str, **options: bool) -> Any:  # fast or not
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **options)


def _load_file(path: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    if path.suffix != ".json":
        raise RequestError(OPTION, path, _ALLOWED)
    tokenizer = Tokenizer.from_file(str(path))
    end = next((name for name in _END_OF_TEXT_NAMES if tokenizer.token_to_id(name) is not None), None)
    return _wrap(tokenizer, end)


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    has = set(os.listdir(folder))
    if "tokenizer_config.json" not in has and "config.json" not in has:
        if "tokenizer.json" in has:
            return _load_file(folder / "tokenizer.json")
        for vocabulary, merges in _GPT2_FILES:
            if {vocabulary, merges} <= has:
                return _load_gpt2(folder / vocabulary, folder / merges)
    if not has & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
        raise RequestError(OPTION, f"{folder} (no tokenizer in it)", _ALLOWED)
    return _load_pretrained(str(folder), local_files_only=True)


def _load_gpt2(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    """Build GPT-2's byte-level BPE from its vocabulary (token → id) and its merges in order of rank."""
    from tokenizers import AddedToken, Tokenizer, models

    # BPE.read_file is not used: it does not say which line of a broken file is wrong.
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    pairs = []
    for number, line in enumerate(merges.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise RequestError(OPTION, f"{merges}:{number}", "two tokens parted by one space on each line")
        pairs.append((pair[0], pair[1]))
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=pairs))
    _make_byte_level(tokenizer)
    if END_OF_TEXT in tokens:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return _wrap(tokenizer, END_OF_TEXT)
    return _wrap(tokenizer, None)


def _make_byte_level(tokenizer: Tokenizer) -> None:
    """Let ``tokenizer`` see UTF-8 bytes, so that every text comes back as it went in."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def _wrap(tokenizer: Tokenizer, end_of_text: str | None) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_text,
        clean_up_tokenization_spaces=False,
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (GPT-2's kind). The same texts give the same tokenizer.

    Args:
        texts: the first :data:`TRAINING_BYTES` bytes of them are used, in whole texts.
        vocab_size: tokens wanted; the 256 bytes and the end-of-text token are among them. A small corpus may
            give fewer.

    Raises:
        RequestError: fewer than 257 tokens wanted.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise RequestError("data.tokenizer_vocab_size", vocab_size, "at least 257: all bytes and end of text")
    tokenizer = Tokenizer(models.BPE())
    _make_byte_level(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer)
    return _wrap(tokenizer, END_OF_TEXT)


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    total = 0
    for text in texts:
        total += len(text.encode("utf-8"))
        if total > limit:
            return
        yield text


def training_identity(vocab_size: int) -> str:
    """Identify how :func:`train_tokenizer` would train; with the corpus it determines the tokenizer."""
    import tokenizers

    return f"byte-level BPE {vocab_size} {TRAINING_BYTES} tokenizers {tokenizers.__version__}"


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """Identify a tokenizer by its content: the same wherever it was loaded from."""
    content = f"{tokenizer.eos_token_id}\0{tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows an embedding needs: one more than the largest id, which may leave gaps below it."""
    return max(tokenizer.get_vocab().values()) + 1


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Copy the tokenizer's Rust core, set to encode plain text and nothing else.

    Nothing is truncated or padded, and the spelling of a special token in a text is text: a document that
    quotes ``<|endoftext|>`` does not end there.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


@contextmanager
def tokenizer_threads(count: int | None) -> Iterator[None]:
    """Let the tokenizers library use ``count`` threads (``None``: all cores) inside the block.

    Its thread pool lives as long as the process and takes its size from the first block that uses it; one
    thread is always obeyed. Afterwards the library keeps to the calling thread, unless the environment said
    otherwise before: a process that is forked later, as a data loader's workers are, would otherwise inherit
    a pool without its threads and wait for it forever.
    """
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM")
    if count == 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    elif parallelism is None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if count is not None and count > 1:
        os.environ.setdefault("RAYON_NUM_THREADS", str(count))
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if parallelism is None else parallelism


FOLDER = "tokenizer"
"""Folder of a run directory, beside ``checkpoints``, that holds the tokenizer."""


# Any of these in a folder of weights means that the tokenizer is there too.
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "encoder.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: RunDirectory) -> None:
    """Write a tokenizer into a run directory, whole or not at all; only the first process writes.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    if not directory.writes:
        return
    try:
        with atomic_folder(directory.path / FOLDER) as building:
            tokenizer.save_pretrained(str(building))
    except OSError as error:
        raise RequestError("run_dir", directory.path, f"a folder that can be written: {error}") from error


def find_tokenizer(init: str, given: str | None) -> str:
    """Where the tokenizer of the weights ``init`` is, as ``data.tokenizer`` names it.

    Args:
        init: a checkpoint (its run's folder holds ``tokenizer/``), a folder of weights or a Hub id.
        given: ``data.tokenizer``, which wins.

    Raises:
        RequestError: ``data.tokenizer``, if there is none with the weights.
    """
    if given is not None:
        return given
    path = Path(init)
    if path.is_file():
        # checkpoints/last.ckpt of a run, or a checkpoint moved together with its tokenizer
        for folder in (path.absolute().parent.parent / FOLDER, path.absolute().parent / FOLDER):
            if folder.is_dir():
                return str(folder)
    elif not path.is_dir():
        return init  # a Hub id
    elif any((path / name).is_file() for name in _FILES):
        return init
    elif (path / FOLDER).is_dir():
        return str(path / FOLDER)
    raise RequestError(
        "data.tokenizer",
        "null",
        f"the tokenizer of {init}: none lies beside it, so its Hub name, folder or file has to be given",
    )


def tokenizer_of(init: str, given: str | None, config: MoMConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the weights ``init``, as :func:`find_tokenizer` finds it.

    Raises:
        RequestError: there is none, it cannot be loaded, or it has tokens that the model does not.
    """
    name = find_tokenizer(init, given)
    tokenizer = load_tokenizer(name)
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise RequestError(
            "data.tokenizer",
            f"{name} ({size} tokens)",
            f"the tokenizer of {init}, of at most {config.vocab_size} tokens",
        )
    return tokenizer
