"""A bank on disk: one safetensors file whose metadata holds the JSON. Read and written a block at a time, never pickle.

A file is written beside the one that it replaces and takes its place when it is whole and on the disk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sfrjax.bank import Bank, Tensors, TensorSpec, assembled, on_disk, spec_bytes
from sfrjax.errors import SfrjaxError
from sfrjax.files import replacing
from sfrjax.memory import aligned_empty, free_bytes
from sfrjax.version import __version__

FORMAT = 4
BLOCK = 1 << 24  # bytes read, written or hashed at a time
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}
_DTYPES = {short: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, short in _NAMES.items()}


def save_bank(bank: Bank, path: str | Path) -> None:
    """Write a bank to one file; whole or not at all.

    Raises:
        SfrjaxError: the file cannot be written; an older file of this name is left as it was.
    """
    write_tensors(path, json.dumps({"format": FORMAT, **bank.about()}, sort_keys=True), bank.tensors())


def load_bank(path: str | Path, *, stream: bool = False) -> Bank:
    """Read a bank written by `save_bank`, and check it against its checksum.

    Args:
        path: the file.
        stream: leave the features that are scored on disk, mapped into memory, for a bank larger than memory; what is
            read of them, and how often, is told in docs/bank.md. The file must stay as it is while the bank is used.

    Raises:
        SfrjaxError: the file is missing, cut short, altered, not a bank, of another format, or larger than memory.
    """
    path = Path(path)
    if not path.is_file():
        raise SfrjaxError(f"{path}: no such bank file; make one with `sfrjax fit IMAGES --out {path.name}`")
    with _naming(path):
        text, checksum, specs, offsets = _read_header(path)
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ValueError(f"a bank of format {about['format']}, and this version reads format {FORMAT}")
    resident = {name: spec for name, spec in specs.items() if not (stream and on_disk(name, spec))}
    _check_memory(path, sum(map(spec_bytes, resident.values())), streamed=stream)
    digest = hashlib.sha256(text.encode())
    tensors: Tensors = {}
    with _naming(path), path.open("rb") as file:
        for name in sorted(specs):
            array = aligned_empty(specs[name][1], specs[name][0]) if name in resident else None
            if not _read(file, offsets[name], name, specs[name], digest, array):
                raise ValueError(f"{name} is not finite")
            if array is None:
                tensors[name] = _map(path, offsets[name], specs[name], "r")
            else:
                tensors[name] = jax.device_put(array) if name.endswith((".atoms", ".gram")) else array
        if checksum != digest.hexdigest():
            raise ValueError("the contents do not match their checksum")
        return assembled(about, tensors)


def write_tensors(path: str | Path, text: str, tensors: Tensors) -> None:
    """Write a bank's JSON and tensors with their checksum: SHA-256 of the JSON and of each tensor in order of names."""
    specs = {name: (np.dtype(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    with replacing(Path(path), durable=True) as temporary, temporary.open("r+b") as file:
        file.write(_header(text, specs, "0" * 64)[0])
        digest = hashlib.sha256(text.encode())
        for name in sorted(tensors):
            digest.update(_title(name, specs[name]))
            data = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
            for start in range(0, len(data), BLOCK):
                digest.update(data[start : start + BLOCK].data)
                file.write(data[start : start + BLOCK].data)
        file.seek(0)
        file.write(_header(text, specs, digest.hexdigest())[0])


@contextmanager
def new_bank_file(
    path: str | Path, about: dict[str, Any], specs: dict[str, TensorSpec]
) -> Iterator[Callable[[str, TensorSpec], np.ndarray]]:
    """Write a bank larger than memory: yields a function from a tensor's name to its map in the file, zero so far.

    Raises:
        SfrjaxError: the file cannot be written; an older file of this name is left as it was.
    """
    text = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    header, offsets = _header(text, specs, "0" * 64)
    with replacing(Path(path), durable=True) as temporary:
        with temporary.open("r+b") as file:
            file.write(header)
            size = max(offsets[name] + spec_bytes(spec) for name, spec in specs.items())
            # A write through a map cannot fail with an error: the disk must have the room beforehand.
            (os.posix_fallocate if hasattr(os, "posix_fallocate") else _extend)(file.fileno(), 0, size)
        maps = {name: _map(temporary, offsets[name], spec, "r+") for name, spec in specs.items()}
        yield lambda name, _: maps[name]
        for array in maps.values():
            array.flush()
        with temporary.open("r+b") as file:
            digest = hashlib.sha256(text.encode())
            for name in sorted(specs):
                _read(file, offsets[name], name, specs[name], digest, None)
            file.seek(0)
            file.write(_header(text, specs, digest.hexdigest())[0])


def _header(text: str, specs: dict[str, TensorSpec], checksum: str) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and where in the file each tensor begins; order of names, no gaps."""
    entries: dict[str, Any] = {"__metadata__": {"sfrjax_bank": text, "sha256": checksum}}
    end = 0
    starts = {}
    for name in sorted(specs):
        starts[name], end = end, end + spec_bytes(specs[name])
        dtype, shape = specs[name]
        entries[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [starts[name], end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 64)
    return len(header).to_bytes(8, "little") + header, {name: 8 + len(header) + start for name, start in starts.items()}


def _read_header(path: Path) -> tuple[str, str, dict[str, TensorSpec], dict[str, int]]:
    """The JSON text, the checksum, and each tensor's spec and place, once safetensors has found the file whole."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
    if "sfrjax_bank" not in metadata:
        raise ValueError("there is no bank in it")
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        entries = json.loads(raw.read(length))
    entries.pop("__metadata__")
    specs = {name: (_DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in entries.items()}
    offsets = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()}
    return metadata["sfrjax_bank"], metadata.get("sha256", ""), specs, offsets


def _read(file: BinaryIO, offset: int, name: str, spec: TensorSpec, digest: Any, into: np.ndarray | None) -> bool:
    """Read a tensor once, into an array where one is given; hash it, and tell whether all its values are finite."""
    dtype, size, finite = spec[0], spec_bytes(spec), True
    target = None if into is None else into.reshape(-1).view(np.uint8)
    buffer = np.empty(min(BLOCK, size), np.uint8) if target is None else target
    digest.update(_title(name, spec))
    file.seek(offset)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        block = buffer[: stop - start] if target is None else target[start:stop]
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise OSError("it ends too early")
        digest.update(block)
        with np.errstate(invalid="ignore", over="ignore"):
            finite &= dtype == np.uint8 or bool(np.isfinite(block.view(dtype).astype(np.float32, copy=False).sum()))
    return finite


def _title(name: str, spec: TensorSpec) -> bytes:
    return f"{name} {_NAMES[spec[0].name]} {list(spec[1])}".encode()


def _map(path: Path, offset: int, spec: TensorSpec, mode: Any) -> np.memmap:
    return np.memmap(path, spec[0], mode, offset, spec[1])


def _extend(descriptor: int, offset: int, size: int) -> None:
    os.ftruncate(descriptor, offset + size)


def _check_memory(path: Path, size: int, *, streamed: bool) -> None:
    free = free_bytes()
    if free is not None and size > free:
        remedy = "fit anew with fewer images or levels" if streamed else "give --stream (load_bank(..., stream=True))"
        raise SfrjaxError(f"{path}: takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free; {remedy}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a file that is no bank raises, as one sentence that names it. Anybody may have written the checksum."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise SfrjaxError(f"{path}: not a whole bank file ({error}); fit again or copy it anew") from error
    except (SfrjaxError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise SfrjaxError(f"{path}: not a bank that sfrjax {__version__} can use ({error}); fit again") from error
