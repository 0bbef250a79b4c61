"""Opening torch checkpoints (.pth) without torch: the legacy format and the zip format.

Legacy: five pickles (magic number, protocol, system information, the object, the storage keys), then for each key an
int64 element count and the raw elements. Zip: an uncompressed archive NAME/data.pkl, NAME/data/KEY, NAME/byteorder.
Nothing is unpickled; see restricted_pickle.
"""

import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sfrjax.errors import SfrjaxError
from sfrjax.weights import restricted_pickle
from sfrjax.weights.restricted_pickle import PickleError, StorageRef, TensorRef
from sfrjax.weights.tensors import StoredTensor, WeightsFile

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_DIRECTORY = 8 * 2**20  # zip directory; 1000 tensors take 0.1 MiB
_MAX_EXPANDED = 16 * 2**20  # a tensor larger than its file (stride 0) may take this much

_Places = dict[str, tuple[int, int]]  # storage key -> position and length in the file, bytes


def open_torch(path: str | os.PathLike[str]) -> WeightsFile:
    """Opens a checkpoint written by torch.save (a state dictionary, or one under "state_dict" or "model").

    Raises:
        SfrjaxError: the file is missing, cut short, malformed, compressed, or names anything but tensors
            and dictionaries.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 16:
                raise PickleError("is too short to be one")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                is_zip = data[:4] == b"PK\x03\x04"
                value, places = _read_zip(file, data) if is_zip else _read_legacy(data)
                size = len(data)
        state = _state_dict(value)
        tensors = {name: _stored(path, size, ref, places) for name, ref in state.items()}
    except (PickleError, zipfile.BadZipFile) as e:
        raise SfrjaxError(f"{path} is not a torch checkpoint that can be read: it {e}") from e
    except (OSError, ValueError) as e:
        raise SfrjaxError(f"{path} cannot be read: {e}") from e
    return WeightsFile(path, tensors, {})


def _read_legacy(data: mmap.mmap) -> tuple[Any, _Places]:
    if data[:1] != b"\x80":
        raise PickleError("is neither of torch's two formats")
    magic, position = restricted_pickle.load(data)
    if magic != _LEGACY_MAGIC:
        raise PickleError("does not begin with torch's magic number")
    _protocol, position = restricted_pickle.load(data, position)
    system, position = restricted_pickle.load(data, position)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise PickleError("was written on a big-endian machine: save it again on a little-endian one")
    value, position = restricted_pickle.load(data, position)
    keys, position = restricted_pickle.load(data, position)
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise PickleError("has no valid list of storages")
    sizes = _element_sizes(value)
    places = {}
    for key in keys:
        if key not in sizes:
            raise PickleError(f"has a storage {key!r} that no tensor uses, so that its size is unknown")
        if position + 8 > len(data):
            raise PickleError("ends before its last storage: the file is cut short")
        (count,) = struct.unpack("<q", data[position : position + 8])
        length = count * sizes[key]
        if count < 0 or position + 8 + length > len(data):
            raise PickleError("ends before its last storage: the file is cut short")
        places[key] = (position + 8, length)
        position += 8 + length
    return value, places


def _element_sizes(value: Any) -> dict[str, int]:
    """Bytes per element of every storage, wherever in the object its tensors are."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()  # shared and cyclic containers are visited once
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, TensorRef):
            sizes[item.storage.key] = _dtype(item.storage).itemsize
        elif isinstance(item, StorageRef):
            sizes[item.key] = _dtype(item).itemsize
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values() if isinstance(item, dict) else item)
    return sizes


class _BoundedReads:
    """A file for zipfile that refuses the giant reads a forged directory would ask for."""

    def __init__(self, file: Any):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_DIRECTORY:
            # zipfile reads "the rest" only for the comment, at most 64 KiB from the end.
            here = self._file.tell()
            if count >= 0 or self._file.seek(0, os.SEEK_END) - here > 2**17:
                raise PickleError("has an implausibly large archive directory")
            self._file.seek(here)
        return self._file.read(count)


def _read_zip(file: Any, data: mmap.mmap) -> tuple[Any, _Places]:
    try:
        with zipfile.ZipFile(_BoundedReads(file)) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error) as e:
        raise PickleError(f"is a damaged archive, or was cut short ({e})") from e
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleError("is an archive without torch's data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise PickleError("is a TorchScript program: save its state_dict() instead")

    places = {
        name.removeprefix(folder + "data/"): _place(data, info)
        for name, info in members.items()
        if name.startswith(folder + "data/")
    }
    start, length = _place(data, members[pickles[0]])
    if length > restricted_pickle.MAX_BYTES:
        raise PickleError("has an implausibly large data.pkl")
    if folder + "byteorder" in members:
        at, count = _place(data, members[folder + "byteorder"])
        if data[at : at + min(count, 16)] != b"little":
            raise PickleError("was written on a big-endian machine: save it again on a little-endian one")
    value, _ = restricted_pickle.load(data[start : start + length])
    return value, places


def _place(data: mmap.mmap, info: zipfile.ZipInfo) -> tuple[int, int]:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise PickleError("is a compressed or encrypted archive, which torch never writes")
    at = info.header_offset
    header = data[at : at + 30] if at >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise PickleError("is a damaged archive, or was cut short")
    names = sum(struct.unpack("<HH", header[26:30]))
    start = at + 30 + names
    if start + info.file_size > len(data):
        raise PickleError("is a damaged archive, or was cut short")
    return start, info.file_size


def _state_dict(value: Any) -> dict[str, TensorRef]:
    for wrapper in ("state_dict", "model"):
        if type(value) is dict and type(value.get(wrapper)) is dict:
            value = value[wrapper]
            break
    if type(value) is not dict or not value:
        raise PickleError("does not hold a dictionary of tensors")
    wrong = [name for name, ref in value.items() if type(name) is not str or not isinstance(ref, TensorRef)]
    if wrong:
        raise PickleError(f"does not hold a dictionary of tensors: entry {wrong[0]!r} is something else")
    if all(name.startswith("module.") for name in value):  # saved from DataParallel
        value = {name.removeprefix("module."): ref for name, ref in value.items()}
    return value


def _dtype(storage: StorageRef) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _stored(path: Path, file_size: int, ref: TensorRef, places: _Places) -> StoredTensor:
    dtype = _dtype(ref.storage)
    if ref.storage.key not in places:
        raise PickleError(f"lacks the storage {ref.storage.key!r}")
    position, length = places[ref.storage.key]
    if ref.storage.numel * dtype.itemsize > length:
        raise PickleError(f"has a storage {ref.storage.key!r} that is shorter than it says")
    if (elements := int(np.prod(ref.shape, dtype=object))) * dtype.itemsize > max(file_size, _MAX_EXPANDED):
        raise PickleError(f"holds a tensor of {elements} elements, more than the whole file")
    return StoredTensor(ref.shape, dtype, _reader(path, dtype, position, ref))


def _reader(path: Path, dtype: np.dtype, position: int, ref: TensorRef) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if 0 in ref.shape:
            return np.empty(ref.shape, dtype)
        span = 1 + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True))
        flat = np.fromfile(path, np.uint8, span * dtype.itemsize, offset=position + ref.offset * dtype.itemsize)
        if flat.nbytes != span * dtype.itemsize:
            raise SfrjaxError(f"{path} changed while it was being read")
        strides = tuple(s * dtype.itemsize for s in ref.strides)
        view = np.lib.stride_tricks.as_strided(flat.view(dtype), ref.shape, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(ref.shape)

    return read
