"""An interpreter for the part of pickle that torch.save emits for tensors in dictionaries, and for nothing else.

Python's own unpickler imports and calls whatever a file names. This one has no imports and no calls: a name is looked
up in a table of inert markers, and the only things that can come into being are numbers, strings, tuples, lists,
dictionaries and `TensorRef`s, which describe where a tensor lies without touching its bytes. Work and memory are
bounded by the limits below whatever the file says (opcode meanings: CPython's pickletools).
"""

import struct
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 1_000_000  # 300 tensors take 14 000
MAX_BYTES = 64 * 2**20  # 300 tensors take 50 000
MAX_STRING = 4096  # the longest tensor names are below 200 characters
MAX_DEPTH = 64  # marks open at once

STORAGE_TYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_CALLABLE = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}


class PickleError(Exception):
    """Why the bytes are refused, as the tail of a sentence."""


@dataclass(frozen=True)
class StorageRef:
    """A storage named by a persistent id: its key in the file, element type and number of elements."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; offset and strides in elements. Checked against `storage.numel`."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A global of the allow-list, inert."""

    module: str
    name: str


_MARK = object()


def load(data: Any, position: int = 0) -> tuple[Any, int]:
    """Interprets the pickle at `position` of a bytes-like object (sliceable, with a length; an mmap will do).

    Returns:
        The value and the position after it.

    Raises:
        PickleError: anything but plain values and tensors, or a limit exceeded, or malformed bytes.
    """
    machine = _Machine(data, position)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, ValueError, struct.error, UnicodeDecodeError) as e:
        raise PickleError(f"holds a malformed pickle ({type(e).__name__} at byte {machine.position})") from e


class _Machine:
    def __init__(self, data: Any, position: int):
        self.data, self.position = data, position
        self.limit = position + MAX_BYTES
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                return self.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise PickleError(f"uses pickle opcode {opcode!r}, which tensors in dictionaries never need")
            action(self)
        raise PickleError(f"holds a pickle of more than {MAX_OPCODES} instructions")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise PickleError("ends in the middle of its pickle: the file is cut short")
        if end > self.limit:
            raise PickleError(f"holds a pickle of more than {MAX_BYTES} bytes")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def unpack(self, code: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, length: int, encoding: str = "utf-8") -> str:
        if not 0 <= length <= MAX_STRING:
            raise PickleError(f"holds a string of {length} bytes, more than any tensor name")
        return self.take(length).decode(encoding)

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_STRING)
        if end < 0:
            raise PickleError("holds a name without an end")
        name = self.take(end - self.position).decode("utf-8")
        self.position += 1
        return name

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("pop across a mark")
        return self.stack.pop()

    def mark(self) -> None:
        if len(self.marks) >= MAX_DEPTH:
            raise PickleError(f"nests its pickle more than {MAX_DEPTH} deep")
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def top(self) -> Any:
        return self.stack[-1]

    def set_items(self, flat: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(flat) % 2:
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Only plain keys: hashing a nested tuple can take time exponential in the size of the file.
            if type(key) not in (str, int):
                raise TypeError("dictionary key that is neither text nor a number")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise TypeError("append to something that is no list")
        target.extend(items)

    def name(self, module: str, name: str) -> None:
        if (module, name) not in _CALLABLE and not (module == "torch" and name in STORAGE_TYPES):
            raise PickleError(
                f"names {module}.{name}, which is outside the allow-list (tensors and dictionaries only); "
                "nothing was run. If the file holds a whole model, save its state_dict() instead"
            )
        self.push(_Name(module, name))

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("name that is not text")
        self.name(module, name)

    def persistent(self) -> None:
        kind, storage, key, _device, numel, *view = self.pop()
        if kind != "storage" or type(storage) is not _Name or type(key) is not str or type(numel) is not int:
            raise TypeError("persistent id that is no storage")
        if any(v is not None for v in view):
            raise PickleError("holds storages that are views of others (torch before 0.4): save it again with torch")
        if numel < 0:
            raise ValueError("storage of negative size")
        self.push(StorageRef(key, STORAGE_TYPES[storage.name], numel))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise TypeError("call of something that is no name")
        if function.name == "OrderedDict":
            if arguments:
                raise TypeError("OrderedDict with arguments")
            self.push({})
        elif function.name == "_rebuild_parameter":
            if type(arguments[0]) is not TensorRef:
                raise TypeError("parameter that is no tensor")
            self.push(arguments[0])
        elif function.name.startswith("_rebuild_tensor"):
            self.push(_tensor(*arguments[:4]))
        else:
            raise TypeError("call of a storage type")

    def build(self) -> None:
        # torch hangs a `_metadata` attribute on state dictionaries; attributes are of no interest here.
        self.pop()
        if type(self.top()) is not dict:
            raise TypeError("attributes for something that is no dictionary")

    def put(self, index: int) -> None:
        self.memo[index] = self.top()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    if type(storage) is not StorageRef or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("tensor without storage, shape or strides")
    numbers = (offset, *shape, *strides)
    if any(type(n) is not int or n < 0 or n >= 2**62 for n in numbers) or len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("shape or strides out of range")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise PickleError(
            f"holds a tensor of shape {shape} that reaches beyond its storage of {storage.numel} elements"
        )
    return TensorRef(storage, offset, shape, strides)


def _long(machine: _Machine) -> None:
    length = machine.unpack("<B")
    if length > 16:
        raise PickleError("holds an integer of more than 128 bits")
    machine.push(int.from_bytes(machine.take(length), "little", signed=True))


_ACTIONS = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_to_mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.unpack("<i")),
    b"K": lambda m: m.push(m.unpack("<B")),
    b"M": lambda m: m.push(m.unpack("<H")),
    b"\x8a": _long,
    b"G": lambda m: m.push(m.unpack(">d")),
    b"X": lambda m: m.push(m.text(m.unpack("<I"))),
    b"\x8c": lambda m: m.push(m.text(m.unpack("<B"))),
    b"\x8d": lambda m: m.push(m.text(m.unpack("<Q"))),
    b"U": lambda m: m.push(m.text(m.unpack("<B"), "latin-1")),  # written by Python 2
    b"T": lambda m: m.push(m.text(m.unpack("<i"), "latin-1")),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items(list(reversed([m.pop(), m.pop()]))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _Machine.stack_name,
    b"Q": _Machine.persistent,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"q": lambda m: m.put(m.unpack("<B")),
    b"r": lambda m: m.put(m.unpack("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.unpack("<B")]),
    b"j": lambda m: m.push(m.memo[m.unpack("<I")]),
}
