"""`pytorch_model.bin` without PyTorch: the zip archive that `torch.save` makes of a state dict.

An archive holds `data.pkl`, a program of a few opcodes that builds an OrderedDict of tensors, and
the bytes of every tensor in a file of its own. The opcodes are written one by one here, so that
nothing is pickled. `torch.load(FILE, weights_only=True)` reads it.

Source: serialization of PyTorch 2 (torch/serialization.py) and opcodes of pickle's protocol 2.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medinit_jax.core.errors import UsageError

_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}
_ARCHIVE = "archive"
# Bytes of tensors begin at a multiple of this, so that a file may be mapped into memory.
_ALIGNMENT = 64
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
_EPOCH = (1980, 1, 1, 0, 0, 0)

_PROTO, _STOP, _MARK = b"\x80\x02", b".", b"("
_TUPLE, _EMPTY_TUPLE, _REDUCE, _SETITEMS = b"t", b")", b"R", b"u"
_PERSISTENT_ID, _FALSE = b"Q", b"\x89"
_NEW_DICT = b"ccollections\nOrderedDict\n" + _EMPTY_TUPLE + _REDUCE
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def write_torch_file(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as `torch.save` does, the same bytes for the same arrays.

    Args:
        path: The file; replaced if it is there.
        state: {name: array of float32, float64 or int64}.

    Raises:
        UsageError: An array has another type.
    """
    for name, value in state.items():
        if value.dtype.name not in _STORAGES:
            raise UsageError(
                f"{name} is {value.dtype.name}, which is not written to a file of PyTorch; make it "
                f"one of {', '.join(_STORAGES)}."
            )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "data.pkl", _program(state))
            _add(archive, "byteorder", b"little")
            for number, value in enumerate(state.values()):
                little = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
                _add(archive, f"data/{number}", little.tobytes())
            _add(archive, "version", b"3\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Appends a file whose bytes begin at a multiple of the alignment."""
    entry = zipfile.ZipInfo(f"{_ARCHIVE}/{name}", _EPOCH)
    large = len(content) > zipfile.ZIP64_LIMIT
    place = archive.start_dir + _LOCAL_HEADER + len(entry.filename) + _ZIP64_EXTRA * large
    # A field of its own, "FB" as PyTorch calls it, with four bytes of header fills the gap.
    gap = -(place + 4) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
    archive.writestr(entry, content)


def _program(state: Mapping[str, np.ndarray]) -> bytes:
    parts = [_PROTO, _NEW_DICT, _MARK]
    for number, (name, value) in enumerate(state.items()):
        parts += [_text(name), *_tensor(number, value)]
    return b"".join([*parts, _SETITEMS, _STOP])


def _tensor(number: int, value: np.ndarray) -> list[bytes]:
    strides = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
    storage = f"ctorch\n{_STORAGES[value.dtype.name]}\n".encode()
    return [
        _REBUILD, _MARK,
        _MARK, _text("storage"), storage, _text(str(number)), _text("cpu"), _whole(value.size),
        _TUPLE, _PERSISTENT_ID,
        _whole(0), _tuple(value.shape), _tuple(strides), _FALSE, _NEW_DICT,
        _TUPLE, _REDUCE,
    ]  # fmt: skip


def _tuple(numbers) -> bytes:
    return _MARK + b"".join(_whole(number) for number in numbers) + _TUPLE


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _whole(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    content = number.to_bytes(8, "little")
    return b"\x8a" + bytes([len(content)]) + content
