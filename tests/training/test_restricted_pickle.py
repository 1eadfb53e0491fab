"""A pickle comes back as plain pickle makes it, and one that would run code runs nothing."""

import builtins
import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from training.data import restricted_pickle
from training.data.restricted_pickle import ArrayInFile, UnsafePickleError, load_pickle

CONTENT = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f8"),
    "words": np.array(["one", "zwei", "三"]),
    "bytes": np.array([b"a", b"bc"]),
    "booleans": np.array([True, False]),
    "objects": np.array([np.arange(2), "text", None, [np.float32(1.5)]], dtype=object),
    "empty": np.zeros((0, 5), dtype=np.float32),
    "empty words": np.array(["", ""]),
    "scalars": [np.float64(0.1), np.int64(7), np.str_("id"), np.bool_(True)],
    "builtins": (
        {1, 2},
        frozenset("ab"),
        1 + 2j,
        b"raw" * 20,
        bytearray(b"array" * 20),
        "text ü" * 20,
        *(None, True, 2**70, 0.5, (), [], {}),
    ),
}


def assert_same(found, expected):
    found = found[:] if isinstance(found, ArrayInFile) else found
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if isinstance(expected, np.ndarray) and expected.dtype != object:
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple | np.ndarray):
        assert len(found) == len(expected)
        for found_item, item in zip(found, expected, strict=True):
            assert_same(found_item, item)
    else:
        assert found == expected


@pytest.fixture(params=[False, True], ids=["in memory", "left in the file"])
def leave(request, monkeypatch):
    """Whether large arrays are left in the file; then whatever is longer than a name is large."""
    monkeypatch.setattr(restricted_pickle, "LARGE", 32)
    return request.param


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_builtins_come_back_as_they_were(tmp_path, protocol, leave):
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    assert_same(load_pickle(path, leave), CONTENT)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dictionaries_of_other_classes_come_back_as_dictionaries(tmp_path, protocol, leave):
    grouped = collections.defaultdict(list, {"a": [1, 2]})
    content = {"train": collections.OrderedDict(audio=np.arange(3.0), grouped=grouped), "more": [grouped]}
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_pickle(path, leave)
    assert_same(found, {"train": {"audio": np.arange(3.0), "grouped": {"a": [1, 2]}}, "more": [{"a": [1, 2]}]})


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_come_back_as_arrays(tmp_path, protocol, leave):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "whole": whole,
        "a view": whole[1:, :2],
        "transposed": whole.transpose(0, 2),
        "a number": torch.tensor(7),
        "none": torch.zeros(0, 5),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        **{str(t): torch.tensor([0, 1, 2]).to(t) for t in (torch.int16, torch.uint8, torch.bool, torch.float16)},
    }
    path = tmp_path / "tensors.pkl"
    path.write_bytes(pickle.dumps(tensors, protocol=protocol))
    for name, found in load_pickle(path, leave).items():
        expected = (tensors[name].float() if name == "bfloat16" else tensors[name]).numpy()
        assert_same(found[:] if found.shape else found, expected)


def test_a_large_array_is_read_row_by_row(tmp_path):
    array = np.random.default_rng(0).random((40, 9000), dtype=np.float32)
    for protocol in (2, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"audio": array, "again": array}, protocol=protocol))
        found = load_pickle(path, leave_large_arrays=True)["again"]
        if protocol > 2:  # below, bytes are written as text, which has to be read from its beginning
            assert isinstance(found, ArrayInFile)
            assert (found.dtype, found.shape, found.ndim, len(found)) == (array.dtype, array.shape, 2, 40)
        for rows in (3, -1, slice(5, 8), slice(None), slice(30, 99), slice(2, 2), slice(0, 10, 3)):
            np.testing.assert_array_equal(found[rows], array[rows])


def test_an_archive_is_named(tmp_path):
    torch.save({"audio": torch.zeros(3)}, tmp_path / "features.pkl")
    with pytest.raises(ValueError, match=r"features\.pkl is a zip archive, as torch.save"):
        load_pickle(tmp_path / "features.pkl")


def test_a_pickle_of_python_2(tmp_path):
    # python2 -c "pickle.dumps({'label': numpy.array([1, 2], 'i2')}, 2)"
    stream = (
        b"\x80\x02}q\x00U\x05labelq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02i2K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff"
        b"\xff\xff\xffK\x00tb\x89U\x04\x01\x00\x02\x00tbs."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(stream)
    assert load_pickle(path)["label"].tolist() == [1, 2]


def test_the_untouched_third_party_file(shared_data):
    path = shared_data / "msa" / "legacy" / "original_ravdess_au_mfcc.pkl"
    content = load_pickle(path)
    with path.open("rb") as file:
        expected = pickle.load(file)  # our own copy, known to be harmless
    assert content.keys() == expected.keys()
    assert all(np.array_equal(content[key], expected[key]) for key in expected)


class Calls:
    """Pickles as a call: what an attacker's object looks like."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def by_name(module, name, *arguments):
    """A stream that calls module.name, for names that pickle itself would not write."""
    return f"c{module}\n{name}\n".encode() + pickle.dumps(arguments, 0)[:-1] + b"R."


class Forged(Calls):
    """Pickles as a call whose result is then given a state."""

    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)


def forged_array(state):
    """A stream that builds a type of eight bytes from `state` and reads eight chosen bytes as an array of it."""
    dtype = Forged(np.dtype, ("f8", False, True), state)
    array = Forged(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"A" * 8))
    return pickle.dumps(array)


def make_exploits(marker):
    command = f"touch {marker}"
    code = f"__import__('os').system({command!r})"
    return {
        "os.system": (pickle.dumps(Calls(os.system, command)), f"{os.system.__module__}.system"),
        "eval": (pickle.dumps(Calls(eval, code)), "builtins.eval"),
        "exec, python 2": (by_name("__builtin__", "exec", code), "__builtin__.exec"),
        "exec, protocol 4": (pickle.dumps(Calls(exec, code), 4), "builtins.exec"),
        "getattr": (pickle.dumps(Calls(getattr, "", "format")), "builtins.getattr"),
        "import": (pickle.dumps(Calls(builtins.__import__, "os")), "builtins.__import__"),
        "subprocess": (by_name("subprocess", "check_output", ["touch", str(marker)]), "subprocess.check_output"),
        "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x94\x93.", "numpy.ndarray.tofile"),
        "numpy's exec": (
            by_name("numpy.testing._private.utils", "runstring", code, {}),
            "numpy.testing._private.utils.runstring",
        ),
        "numpy.load": (by_name("numpy", "load", str(marker)), "numpy.load"),
        "memmap": (by_name("numpy", "memmap", str(marker), "uint8", "w+", 0, [1]), "numpy.memmap"),
        "inside a list": (pickle.dumps([1, {"features": Calls(os.system, command)}]), "system"),
        "inside an object array": (pickle.dumps(np.array([Calls(os.system, command), 1], dtype=object)), "system"),
        "as a dictionary key": (pickle.dumps({(Calls(os.system, command),): 1}), "system"),
        "instance": (b"(S'" + command.encode() + b"'\nios\nsystem\n.", "os.system"),
        "numpy.ndarray over foreign memory": (by_name("numpy", "ndarray", [1], "O", b"\x41" * 8), "numpy.ndarray"),
        "the state of a class": (b"cnumpy\nndarray\n(N}S'__doc__'\nI1\nstb.", ""),
        "the state of a stand": (b"c_codecs\nencode\n(N}S'__new__'\ncnumpy\nndarray\nstb.", ""),
        "a codec": (by_name("_codecs", "encode", "x", "rot13"), "rot13"),
        "a class as a value": (b"cnumpy\ndtype\n.", ""),
        "a builtin type that only a defaultdict names": (by_name("builtins", "str", "x"), "builtin type"),
        "the state of a defaultdict's class": (b"ccollections\ndefaultdict\n(N}S'__init__'\nI1\nstb.", ""),
        "the state of a defaultdict": (by_name("collections", "defaultdict")[:-1] + b"(N}S'__init__'\nI1\nstb.", ""),
        "the state of a tensor's class": (b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'build'\nI1\nstb.", ""),
        "the state of an OrderedDict's class": (b"ccollections\nOrderedDict\n(N}S'update'\nI1\nstb.", ""),
        "a factory": (pickle.dumps(Calls(collections.defaultdict, os.getcwd)), os.getcwd.__module__),
        "inside a tensor": (
            pickle.dumps(Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, command)))),
            "system",
        ),
        "the state of bytes": (pickle.dumps(bytes(9), 3)[:-1] + b"(N}S'offset'\nI1\nstb.", ""),
    }


EXPLOITS = sorted(make_exploits("marker"))


@pytest.mark.parametrize("name", EXPLOITS)
def test_a_pickle_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path, name, leave):
    marker = tmp_path / "it_ran"
    stream, offending = make_exploits(marker)[name]
    path = tmp_path / "features.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError) as caught:
        load_pickle(path, leave)
    assert str(path) in str(caught.value)
    assert offending in str(caught.value)
    assert isinstance(restricted_pickle._PickledClass.__doc__, str)
    assert restricted_pickle._PickledDefaultDict(None, {"a": 1}) == {"a": 1}
    assert not marker.exists()


def test_the_exploit_is_real(tmp_path):
    marker = tmp_path / "it_ran"
    pickle.loads(make_exploits(marker)["os.system"][0])
    assert marker.exists()


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 8, 0),  # a structure, whose offsets could point anywhere
        (3, "|", (np.dtype("f8"), (1 << 40,)), None, None, 8, 8, 0),  # a subarray
        (3, "x", None, None, None, -1, -1, 0),
    ],
)
def test_a_forged_array_type_is_refused(tmp_path, state, leave):
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_array(state))
    with pytest.raises(UnsafePickleError, match="structured array"):
        load_pickle(path, leave)


def forged_tensor(offset=0, size=(2,), stride=(1,), storage=None):
    """A stream that builds a tensor over two numbers."""
    storage = torch.zeros(2).storage().__reduce__()[1][0] if storage is None else storage
    storage = Calls(torch.storage._load_from_bytes, storage)
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (3,)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (-1,)},
        {"stride": (1 << 40,)},
        {"size": (1 << 40,), "stride": (0, 0)},
        {"storage": pickle.dumps(Calls(os.system, "true"))},
        {"storage": torch.zeros(2).storage().__reduce__()[1][0][:-4]},
        {"storage": torch.zeros(2).storage().__reduce__()[1][0].replace(b"FloatStorage", b"nn.Parameter")},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_forged_tensor_is_refused(tmp_path, change, leave):
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_tensor())
    assert load_pickle(path, leave)[:].tolist() == [0, 0]
    path.write_bytes(forged_tensor(**change))
    with pytest.raises(ValueError, match=r"forged\.pkl"):
        load_pickle(path, leave)


def test_a_number_type_that_claims_to_hold_objects_stays_a_number_type(tmp_path, leave):
    # with numpy's own unpickling, the flags 63 make eight chosen bytes a pointer
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_array((3, "<", None, None, None, -1, -1, 63)))
    assert load_pickle(path, leave).dtype == np.float64


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"not a pickle",
        pickle.dumps(CONTENT)[:200],
        b"\x80\x04]\x94h\x00a.",  # a list that holds itself
        pickle.dumps(np.arange(4.0), 2).replace(struct.pack("<d", 3.0), b""),  # fewer bytes than the shape wants
        b"(" * 10 + b".",
        b"P0\n.",
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
)
def test_a_damaged_pickle_is_one_clear_error(tmp_path, stream, leave):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=r"damaged\.pkl"):
        load_pickle(path, leave)
