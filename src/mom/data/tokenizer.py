"""Tokenizers: trained on the corpus, or any fast Hugging Face tokenizer by name or folder.

Every tokenizer is a ``transformers.PreTrainedTokenizerFast`` with an end-of-text token, which :mod:`mom.data.prepare`
puts after every document.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.errors import UsageError, first_line
from mom.runs.directory import RunDirectory, run_dir_errors
from mom.runs.files import atomic_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from mom.model import MoMConfig

FOLDER = "tokenizer"
"""The folder of a run directory, next to ``checkpoints``, that holds the tokenizer."""
END_OF_TEXT = "<|endoftext|>"

# A tokenizer is trained on at most this many UTF-8 bytes of text: with more, the merges hardly change, but time and
# memory grow.
TRAINING_BYTES = 32_000_000

# Names of the end-of-text token in a bare tokenizer.json, which does not say which token it is.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
# The two pairs of names under which GPT-2's vocabulary and merges are published.
_GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
# Any of these in a folder of weights means that it has a tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "encoder.json")
_ALLOWED = (
    "data.tokenizer must be null to train one, the name of a Hugging Face tokenizer, or a folder with one "
    "(tokenizer.json, or encoder.json and vocab.bpe)"
)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a local folder or file, or by its name on the Hugging Face Hub.

    Args:
        name_or_path: a folder saved by ``save_pretrained``, a ``tokenizer.json``, a folder with GPT-2's
            ``encoder.json`` and ``vocab.bpe``, or a name such as ``gpt2``. Code that comes with a tokenizer is never
            run.

    Raises:
        UsageError: there is no tokenizer, it is not fast, or it has no end-of-text token.
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
            raise UsageError(f"{_ALLOWED}, got {name_or_path or repr('')}, which was not found")
    except UsageError:
        raise
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError, and bare Exception here
        raise UsageError(f"{_ALLOWED}, got {name_or_path}: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"data.tokenizer must be a fast tokenizer, with a tokenizer.json, got {name_or_path}"
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(f"data.tokenizer must have an end-of-text token (eos_token), got {name_or_path}")
    return tokenizer


def _load_pretrained(name_or_path: str, **options: bool) -> Any:  # a fast or a slow tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **options)


def _load_file(path: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    if path.suffix != ".json":
        raise UsageError(f"{_ALLOWED}, got {path}")
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
        raise UsageError(f"{_ALLOWED}, got {folder}, which has no tokenizer")
    return _load_pretrained(str(folder), local_files_only=True)


def _load_gpt2(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    """Build GPT-2's byte-level BPE from its vocabulary (token → ID) and its merges in order of rank."""
    from tokenizers import AddedToken, Tokenizer, models

    # BPE.read_file does not say which line of a broken file is wrong. GPT2TokenizerFast builds the same tokenizer, but
    # serializes it differently, which would change the keys of prepared corpora.
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    pairs = []
    for number, line in enumerate(merges.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise UsageError(
                f"cannot read data.tokenizer: {merges}:{number} must have two tokens separated by a space"
            )
        pairs.append((pair[0], pair[1]))
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=pairs))
    _make_byte_level(tokenizer)
    if END_OF_TEXT in tokens:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return _wrap(tokenizer, END_OF_TEXT)
    return _wrap(tokenizer, None)


def _make_byte_level(tokenizer: Tokenizer) -> None:
    """Make a tokenizer byte-level, so that decoding restores every text."""
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
    """Train a byte-level BPE like GPT-2's. The same texts give the same tokenizer.

    Args:
        texts: the texts, of which those within the first :data:`TRAINING_BYTES` bytes are used.
        vocab_size: size of the vocabulary, including the 256 bytes and the end-of-text token. A small corpus may result
            in fewer tokens.

    Raises:
        UsageError: ``vocab_size`` is less than 257.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UsageError(
            f"data.tokenizer_vocab_size must be at least 257, for all bytes and the end of text, got {vocab_size}"
        )
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
    """Return the settings of :func:`train_tokenizer`, which together with the corpus determine the tokenizer."""
    import tokenizers

    return f"byte-level BPE {vocab_size} {TRAINING_BYTES} tokenizers {tokenizers.__version__}"


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash of a tokenizer's content, which does not depend on where it was loaded from."""
    content = f"{tokenizer.eos_token_id}\0{tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def vocabulary_identity(tokenizer: PreTrainedTokenizerFast, size: int | None = None) -> str:
    """Return a hash of the first ``size`` tokens (all by default) by ID, after their number: ``<size>:<SHA-256>``."""
    size = vocabulary_size(tokenizer) if size is None else size
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number < size)
    return f"{size}:{hashlib.sha256(repr(tokens).encode('utf-8', 'surrogatepass')).hexdigest()}"


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the number of rows in an embedding: the largest ID plus 1, since IDs may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


class TextEncoder:
    """Encoder of plain text: a copy of a tokenizer's Rust core that cannot be asked for anything else.

    Nothing is truncated or padded, no special token is added, and special tokens that a text spells out are encoded as
    text: a document that quotes ``<|endoftext|>`` does not end there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from tokenizers import Tokenizer

        self._core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._core.no_truncation()
        self._core.no_padding()
        self._core.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token IDs of each text."""
        encodings = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


@contextmanager
def tokenizer_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads of the tokenizers library within the context (``None``: all cores).

    The library's thread pool lives as long as the process and gets its size from the first context that uses it; a
    count of 1 always works. Afterwards, the library uses only the calling thread, unless the environment says
    otherwise: a process that is forked later, such as a data loader's worker, would inherit the pool without its
    threads and wait forever.
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


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: RunDirectory) -> None:
    """Write a tokenizer to a run directory atomically; only the first process writes.

    Raises:
        UsageError: the run directory cannot be written.
    """
    if directory.writes:
        with run_dir_errors(directory.path), atomic_folder(directory.path / FOLDER) as building:
            tokenizer.save_pretrained(str(building))


def find_tokenizer(init: str, given: str | None) -> str:
    """Return the tokenizer of the weights ``init``, as a value of ``data.tokenizer``.

    Args:
        init: a checkpoint (its run directory has a folder ``tokenizer``), a folder of weights, or a Hub ID.
        given: ``data.tokenizer``, which takes precedence.

    Raises:
        UsageError: there is no tokenizer with the weights.
    """
    if given is not None:
        return given
    path = Path(init)
    if path.is_file():
        # checkpoints/last.ckpt of a run, or a checkpoint that was moved together with its tokenizer
        for folder in (path.absolute().parent.parent / FOLDER, path.absolute().parent / FOLDER):
            if folder.is_dir():
                return str(folder)
    elif not path.is_dir():
        return init  # a Hub ID
    elif any((path / name).is_file() for name in _TOKENIZER_FILES):
        return init
    elif (path / FOLDER).is_dir():
        return str(path / FOLDER)
    raise UsageError(f"no tokenizer found with {init}; set data.tokenizer to its Hub name, folder, or file")


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, name: str, init: str) -> None:
    """Reject a tokenizer whose IDs mean other tokens than to the weights ``init``, if their own tokenizer is known.

    Args:
        tokenizer: the tokenizer.
        name: where it was loaded from, for the error.
        init: the weights.

    Raises:
        UsageError: an ID of both vocabularies is another token.
    """
    try:
        own_name = find_tokenizer(init, None)
        own = tokenizer if own_name == name else load_tokenizer(own_name)
    except UsageError:
        return
    theirs = {number: token for token, number in own.get_vocab().items()}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        if theirs.get(number, token) != token:
            raise UsageError(
                f"data.tokenizer must be the tokenizer of {init}, got {name}, whose ID {number} is {token!r} instead "
                f"of {theirs[number]!r}"
            )


def load_model_tokenizer(init: str, given: str | None, config: MoMConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer of the weights ``init``, which :func:`find_tokenizer` finds.

    Raises:
        UsageError: there is no tokenizer, it cannot be loaded, its IDs mean other tokens than those of the weights, or
            it has more tokens than the model.
    """
    name = find_tokenizer(init, given)
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, name, init)
    known = config.vocabulary
    if known is not None and vocabulary_identity(tokenizer, int(known.partition(":")[0])) != known:
        raise UsageError(
            f"{init} was trained with other tokens than those of {name}; set data.tokenizer to its own"
        )
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise UsageError(
            f"data.tokenizer must be the tokenizer of {init}, with at most {config.vocab_size} tokens, got {name} with "
            f"{size}"
        )
    return tokenizer
