"""Files: the one atomic writer, tensors with a described header, and fingerprints.

Whatever the project writes passes through `replace_atomically`: a reader, or a process that dies
half-way, sees the old file or the new one, never a part. Tensors are safetensors, never pickle,
with a JSON description in the file's header.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from incontext_linear.config import NO_EFFECT

FORMAT = 2
"""Of the header. Raised when an older version of this project could not read what is written, or
when a reader may rely on more: from 2 on there is a checksum, and a file without it is damaged.
"""

_HEADER_KEY = "incontext_linear"
_TEMPORARY = ".tmp"
_OS_ERROR = re.compile(r"os error (\d+)")
_STALE = re.compile(rf"\..*\.[0-9a-f]{{32}}\{_TEMPORARY}.*")


class UnreadableFileError(RuntimeError):
    """A file is truncated, is not one of ours, or is of another format version."""


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, which then takes its place.

    Args:
        path: the file that is made or replaced; its folder is made where it is missing.
        write: is given the temporary path, in the same folder and with the same ending.

    Raises:
        OSError: naming ``path``, if the disk is full or read-only, or one of its folders is a file;
            the old file is then as it was.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{_TEMPORARY}{path.suffix}")
    try:
        _make_folder(path.parent)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that nobody else can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        number = _system_error(error, temporary)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with contextlib.suppress(NotADirectoryError):  # which is then on its way
            temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # what lies there is no folder
        number = errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(folder)) from error


def _system_error(error: BaseException | None, path: Path) -> int | None:
    """The system's error behind one that a writer raised of the file: libraries wrap it, and
    safetensors gives its number in words only.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            known = error.filename in (None, str(path), str(path.parent))
            return error.errno if known else None
        if isinstance(error, SafetensorError) and (match := _OS_ERROR.search(str(error))):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


def remove_temporaries(folder: Path, below: bool = True) -> list[Path]:
    """Remove what killed writers left in a folder that nobody writes to now; gives what was
    removed.

    Args:
        folder: where to look.
        below: also in the folders below it.
    """
    find = folder.rglob if below else folder.glob
    hidden = find(f".*{_TEMPORARY}*")
    stale = [path for path in hidden if _STALE.fullmatch(path.name) and path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    replace_atomically(path, lambda temporary: temporary.write_text(text) and None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or no such object."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description atomically; identical content is left untouched."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**description, "format": FORMAT}
    header = {**described, "checksum": _checksum(contiguous, described)}
    content = save(contiguous, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})
    if path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    replace_atomically(path, lambda temporary: temporary.write_bytes(content) and None)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        UnreadableFileError: in one line, if the file is truncated or otherwise damaged, was not
            written by `write_tensors`, or is of a newer format than this version knows.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = dict(json.loads((file.metadata() or {})[_HEADER_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnreadableFileError(
            f"{path} is truncated or not a weights file of this project: {_first_line(error)}"
        ) from error
    found = description.get("format", 0)  # files from before formats had numbers
    if not isinstance(found, int) or found > FORMAT:
        raise UnreadableFileError(
            f"{path} has format {found!r}, and this version of incontext-linear reads formats 0 to "
            f"{FORMAT}: update the package, or train the learner again"
        )
    checksum = description.pop("checksum", None)
    if (found > 1 or checksum) and checksum != _checksum(tensors, description):
        raise UnreadableFileError(f"{path} is damaged: its checksum is not that of its content")
    description.pop("format", None)
    return tensors, description


def _checksum(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Of the values, names, dtypes and shapes of all tensors, and of the description."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def recipe_fingerprint(
    task: dict[str, Any], model: dict[str, Any], training: dict[str, Any], seed: int
) -> str:
    """Names a training by all that its result depends on, not by compilation or checkpoints."""
    numerics = {name: value for name, value in training.items() if name not in NO_EFFECT}
    return fingerprint(task, model, numerics, seed)


def fingerprint(*configs: Any) -> str:
    """A short hash of JSON-like values: equal parameters, equal fingerprint."""
    text = json.dumps(configs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
