"""Files of weights: read without running code, with checksums, and with one line for any damage.

Our checkpoints are zip archives, whose entries have checksums. The ``.safetensors`` files that this package writes have
the SHA-256 of their content in their header. Both are verified once per process and file, whoever reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from mom.errors import UsageError, first_line
from mom.model.registry import InvalidOption
from mom.runs.files import atomic_file, parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MEASURED_WITH = "measured_with"
"""Checkpoint key: model options that a schedule had replaced when the checkpoint was saved."""

VALIDATED = "validated"
"""Checkpoint key: metrics of the validation at which the checkpoint was saved; empty at another step."""

_SHA256 = "sha256"
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
# Options of transformers that may name code on the Hub to download and run in place of the model's own.
_CODE = (
    "_attn_implementation",
    "_attn_implementation_internal",
    "attn_implementation",
    "experts_implementation",
)
# The fields that a checkpoint must have, those it may have, and their types.
_REQUIRED: Mapping[str, type] = {"state_dict": dict}
_OPTIONAL: Mapping[str, type] = {
    MEASURED_WITH: dict,
    VALIDATED: dict,
    "global_step": int,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
}


@contextmanager
def load_errors(source: str | Path, option: str) -> Iterator[None]:
    """Turn anything that is raised by reading a file into a :class:`~mom.errors.UsageError` that names it."""
    try:
        yield
    except UsageError:
        raise
    except InvalidOption as error:  # such as a kind of router that only a plugin registers
        raise cannot_load(source, option, str(error)) from None
    except Exception as error:  # the libraries raise anything, from KeyError to bare Exception
        reason = first_line(error)
        if "Weights only load failed" in reason:  # a page about ways to disable this check
            reason = "a file holds more than plain data"
        elif "trust_remote_code" in str(error):
            reason = "it requires code of its own, which is never run"
        elif "ignore_mismatched_sizes" in reason:
            reason = "a weight has another shape than config.json says"
        raise cannot_load(source, option, reason[:160]) from error


def cannot_load(source: str | Path, option: str, reason: str) -> UsageError:
    """Return the error for weights that cannot be used."""
    return UsageError(f"cannot load {option}={source}: {reason}")


def read_checkpoint(path: Path, option: str) -> dict[str, Any]:
    """Read a Lightning checkpoint of a run, without running any code it may contain.

    Tensors are memory-mapped, so unused tensors take no memory.

    Raises:
        UsageError: the file is damaged or not a run's checkpoint.
    """
    if (damage := _archive_damage(path, *_version(path))) is not None:
        raise cannot_load(path, option, f"not a complete checkpoint of a run ({damage})")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises anything on bytes that are not a pickle
        is_damaged = isinstance(error, OSError | RuntimeError)
        reason = first_line(error)[:160] if is_damaged else "not a checkpoint, or more than plain data"
        raise cannot_load(path, option, f"not a complete checkpoint of a run ({reason})") from None
    if (misfit := _misfit(checkpoint)) is not None:
        raise cannot_load(path, option, misfit)
    return checkpoint


def content_of_checkpoint(path: Path) -> str:
    """Return a hash of a checkpoint's content, from the checksums in its archive, without reading its tensors."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def without_code(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration from a file, without those that may name code to run."""
    return {name: value for name, value in fields.items() if name not in _CODE}


def read_config(source: str | Path, option: str) -> PreTrainedConfig:
    """Read the ``config.json`` of a folder or of the Hub with transformers, without running any code it may name.

    Raises:
        UsageError: it is missing, damaged, of an unknown kind, or requires code, quantization, or an adapter.
    """
    from transformers import AutoConfig

    folder = Path(source)
    if folder.is_dir():
        read_fields(folder, option)
        if (folder / "adapter_config.json").is_file():
            raise cannot_load(source, option, "it has an adapter (adapter_config.json); merge it first")
    with load_errors(source, option):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise cannot_load(source, option, "quantized weights are not supported")
        config._attn_implementation = None
        return config


def read_fields(folder: Path, option: str) -> dict[str, Any]:
    """Return the fields of a folder's ``config.json``; raise :class:`~mom.errors.UsageError` if it is damaged."""
    try:
        fields = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise cannot_load(
            folder, option, f"its config.json is not valid ({first_line(error)[:160]})"
        ) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type", ""), str):
        raise cannot_load(folder, option, "its config.json is not that of a model")
    return fields


def read_pretrained(kind: Any, source: str | Path, config: PreTrainedConfig, option: str) -> Any:
    """Call ``from_pretrained`` and require every weight; inside ``torch.device("meta")`` only build the model.

    Raises:
        UsageError: a weight is missing, has another shape, or was damaged since it was written.
    """
    with load_errors(source, option):
        if torch.get_default_device().type == "meta":
            return kind(config)
        if Path(source).is_dir():
            verify_folder(Path(source), option)
        model, found = kind.from_pretrained(
            source, config=config, trust_remote_code=False, output_loading_info=True
        )
        parameters = {name for name, _ in model.named_parameters()}
        if not Path(source).is_dir() and (folder := _snapshot(str(source), config)) is not None:
            verify_folder(folder, option)
        if missing := sorted(parameters & set(found["missing_keys"])):
            raise cannot_load(source, option, f"{len(missing)} weights are missing, such as {missing[0]}")
        return model


def _snapshot(name: str, config: PreTrainedConfig) -> Path | None:
    """Return the folder in the Hub's cache with the files of a model; ``None`` if there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
    return Path(found).parent if isinstance(found, str) else None


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Call ``save_pretrained``, and add the checksums that :func:`verify_folder` verifies."""
    model.save_pretrained(str(folder))
    for path in folder.glob("*.safetensors"):
        _add_checksum(path)


def verify_folder(folder: Path, option: str) -> None:
    """Verify the checksums of a folder's ``.safetensors`` files; files of other programs have none.

    Raises:
        UsageError: a file is damaged.
    """
    for path in sorted(folder.glob("*.safetensors")):
        if (damage := _tensors_damage(path, *_version(path))) is not None:
            raise cannot_load(path, option, damage)


def _misfit(checkpoint: Any) -> str | None:
    """Return what makes plain data no checkpoint of a run; ``None`` if it can be one."""
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        return "not a checkpoint of a run (it has no state_dict)"
    hyper_parameters = checkpoint.get("hyper_parameters")
    if not isinstance(hyper_parameters, dict) or "model_config" not in hyper_parameters:
        return "not a checkpoint of a mom run (it has no model configuration)"
    for name, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            article = "an" if kind is int else "a"
            return f"its {name} must be {article} {kind.__name__}, got {type(checkpoint[name]).__name__}"
    for name in ("model_config", MEASURED_WITH):
        fields = checkpoint.get(name, {}) if name == MEASURED_WITH else hyper_parameters[name]
        if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
            return f"its {name} must be a mapping from names to options"
    weights = checkpoint["state_dict"].items()
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights):
        return "its state_dict must be a mapping from names to tensors"
    return None


def _version(path: Path) -> tuple[int, int]:
    """Return the size of a file and the time of its last change, so that a replaced file is verified again."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _archive_damage(path: Path, size: int, changed: int) -> str | None:
    """Return the damage of a checkpoint's archive, whose checksums PyTorch's loader ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch stores entries as they are; a compressed one could expand without bound.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "its entries are compressed"
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises anything on a damaged archive
        return first_line(error)[:160]
    return None if damaged is None else f"its entry {damaged} is damaged"


@functools.lru_cache(maxsize=64)
def _tensors_damage(path: Path, size: int, changed: int) -> str | None:
    """Return the damage of a ``.safetensors`` file."""
    try:
        with path.open("rb") as file:
            header = _read_header(file, size)
            recorded = header.get("__metadata__", {}).get(_SHA256)
            if recorded is not None and recorded != _digest(header, file):
                return "its content does not have the SHA-256 in its header, so it is damaged"
    except (OSError, ValueError, AttributeError) as error:
        return f"not a complete .safetensors file ({first_line(error)[:160]})"
    return None


def _read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"its header cannot have {length} bytes")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _digest(header: Mapping[str, Any], file: BinaryIO) -> str:
    """Return the SHA-256 of the names, types, shapes, and values of all tensors; reads the rest of the file."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _add_checksum(path: Path) -> None:
    """Write a file anew with its SHA-256 in the header's metadata, where it stays with the content."""
    with atomic_file(path) as temporary, path.open("rb") as file, temporary.open("wb") as copy:
        header = _read_header(file, path.stat().st_size)
        content = file.tell()
        header["__metadata__"] = {**header.get("__metadata__", {}), _SHA256: _digest(header, file)}
        written = json.dumps(header, separators=(",", ":")).encode()
        written += b" " * (-len(written) % 8)
        file.seek(content)
        copy.write(len(written).to_bytes(8, "little") + written)
        shutil.copyfileobj(file, copy, 1 << 20)
