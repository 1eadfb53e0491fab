"""The field's pickles load to what plain pickle makes of them, and a pickle that would run code runs nothing."""

import builtins
import math
import os
import pickle
import struct

import numpy as np
import pytest

from training.data import msa_pickles
from training.data.msa_parquet import load_msa_parquet
from training.data.msa_pickles import (
    UnsafePickleError,
    load_feature_dictionary_pickle,
    load_mmsa_pickle,
    load_mse_adapter_pickle,
    load_pickle,
)
from training.data.msa_samples import count_replaced
from training.data.ravdess import load_ravdess_features

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
    "builtins": ({1, 2}, frozenset("ab"), 1 + 2j, b"raw", bytearray(b"array"), None, True, 2**70, 0.5, (), [], {}),
}


def assert_same(found, expected):
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_builtins_come_back_as_they_were(tmp_path, protocol):
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    assert_same(load_pickle(path), CONTENT)


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
    }


EXPLOITS = sorted(make_exploits("marker"))


@pytest.mark.parametrize("name", EXPLOITS)
def test_a_pickle_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path, name):
    marker = tmp_path / "it_ran"
    stream, offending = make_exploits(marker)[name]
    path = tmp_path / "features.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError) as caught:
        load_pickle(path)
    assert str(path) in str(caught.value)
    assert offending in str(caught.value)
    assert isinstance(msa_pickles._PickledClass.__doc__, str)
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
def test_a_forged_array_type_is_refused(tmp_path, state):
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_array(state))
    with pytest.raises(UnsafePickleError, match="structured array"):
        load_pickle(path)


def test_a_number_type_that_claims_to_hold_objects_stays_a_number_type(tmp_path):
    # with numpy's own unpickling, the flags 63 make eight chosen bytes a pointer
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_array((3, "<", None, None, None, -1, -1, 63)))
    assert load_pickle(path).dtype == np.float64


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
def test_a_damaged_pickle_is_one_clear_error(tmp_path, stream):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=r"damaged\.pkl"):
        load_pickle(path)


def mmsa_split(size=3, steps=5, **columns):
    generator = np.random.default_rng(size)
    return {
        "id": [f"video{index}$_${index}" for index in range(size)],
        "raw_text": np.array([f"text {index}" for index in range(size)]),
        "audio": generator.normal(size=(size, steps, 4)),
        "vision": generator.normal(size=(size, steps, 2)),
        "regression_labels": np.linspace(-3, 3, size)[:, None],
        **columns,
    }


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_mmsa_layout_of_mosi(shared_data):
    datasets = load_mmsa_pickle(shared_data / "msa" / "legacy" / "mmsa_layout_mosi_small.pkl")
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 40, "valid": 12, "test": 12}
    sample = datasets["train"][1]
    assert sample["text"] == "UM I LOVED THE VERY FIRST ALVIN AND THE CHIPMUNKS MOVIE"
    assert (sample["dialogue_id"], sample["utterance_id"]) == ("1DmNV9C1hbY", 2)
    assert sample["label"] == np.float32(1.6)
    assert (sample["audio"].shape, sample["vision"].shape) == ((1, 73), (1, 100))


def test_unaligned_features_are_cut_to_their_lengths(tmp_path):
    split = mmsa_split(audio_lengths=[5, 2, 0], vision_lengths=np.array([1, 5, 3]))
    dataset = load_mmsa_pickle(write(tmp_path / "unaligned.pkl", {"train": split}))["train"]
    assert [len(audio) for audio in dataset["audio"]] == [5, 2, 0]
    assert [len(vision) for vision in dataset["vision"]] == [1, 5, 3]
    np.testing.assert_array_equal(dataset[1]["audio"], split["audio"][1, :2].astype(np.float32))


def test_aligned_features_lose_the_zeros_at_their_ends_only(tmp_path):
    split = mmsa_split()
    split["audio"][0, [0, 1, 3]] = 0
    split["audio"][1] = 0
    dataset = load_mmsa_pickle(write(tmp_path / "aligned.pkl", {"valid": split}))["valid"]
    assert [len(audio) for audio in dataset["audio"]] == [3, 0, 5]
    assert dataset[1]["audio"].shape == (0, 4)


def test_values_that_are_no_numbers_become_their_features_mean_and_are_counted(tmp_path):
    split = mmsa_split()
    split["audio"][0, 1, 2] = -np.inf
    split["audio"][2, 0, 1:] = np.nan
    split["vision"][1, :, 0] = np.inf
    dataset = load_mmsa_pickle(write(tmp_path / "gaps.pkl", {"train": split}))["train"]
    assert count_replaced(dataset) == {"audio": {"values": 4, "samples": 2}, "vision": {"values": 5, "samples": 1}}
    assert dataset[0]["audio"][1, 2] == pytest.approx(split["audio"][0, [0, 2, 3, 4], 2].mean())
    expected = [split["audio"][2, 0, 0], *split["audio"][2, 1:, 1:].mean(axis=0)]
    np.testing.assert_allclose(dataset[2]["audio"][0], expected, rtol=1e-5)
    np.testing.assert_array_equal(dataset[1]["vision"][:, 0], 0)
    assert all(np.isfinite(audio).all() for audio in dataset["audio"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"raw_text": None}, "raw_text"),
        ({"regression_labels": np.array([1.0, np.nan, 2.0])}, "video1.*finite number"),
        ({"regression_labels": np.array([1.0])}, "regression_labels has 1 entries, id has 3"),
        ({"id": ["a", "b", "a"]}, "the id a occurs twice"),
        ({"audio": np.array([["a"], ["b"], ["c"]])}, "audio must hold numbers"),
    ],
)
def test_a_column_that_is_wrong_is_named(tmp_path, change, message):
    split = {key: value for key, value in mmsa_split(**change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_mmsa_pickle(write(tmp_path / "wrong.pkl", {"train": split}))


def test_files_of_another_layout_are_named(tmp_path):
    path = write(tmp_path / "other.pkl", [1, 2])
    with pytest.raises(ValueError, match="MMSA's layout"):
        load_mmsa_pickle(path)
    with pytest.raises(ValueError, match="entry 0"):
        load_mse_adapter_pickle(path)
    with pytest.raises(ValueError, match="dictionary of feature vectors"):
        load_feature_dictionary_pickle(path, {"audio": (0, 1)}, describe={}.get)


def test_mse_adapter_layout(shared_data):
    folder = shared_data / "msa" / "legacy"
    dataset = load_mse_adapter_pickle(folder / "ravdess_train.pkl")
    assert len(dataset) == 24
    with (folder / "ravdess_train.pkl").open("rb") as file:
        entry = pickle.load(file)[0]
    np.testing.assert_array_equal(dataset[0]["audio"], entry["features"]["audio"][: entry["features"]["audio_len"]])
    np.testing.assert_array_equal(dataset[0]["vision"], entry["features"]["video"])
    assert (dataset[0]["text"], dataset[0]["label"]) == (entry["features"]["text"], entry["label"])


def test_mse_adapter_layout_with_numbered_classes_and_missing_modalities(tmp_path):
    entries = [
        {"features": {"text": "你好", "audio": np.ones((4, 3)), "audio_len": 2, "video": None}, "label": np.int64(6)},
        {
            "features": {"text": "嗯", "audio": [], "video": [[1.0, 2.0]]},
            "label": 0,
            "dialogue_id": "d1",
            "speaker": "甲",
        },
    ]
    dataset = load_mse_adapter_pickle(write(tmp_path / "chinese.pkl", entries))
    assert list(dataset["label"]) == ["6", "0"]
    assert [audio.shape for audio in dataset["audio"]] == [(2, 3), (0, 3)]
    assert [vision.shape for vision in dataset["vision"]] == [(0, 2), (1, 2)]
    assert (dataset[1]["dialogue_id"], dataset[1]["speaker"]) == ("d1", "甲")


def test_ravdess_features_by_actor(shared_data):
    datasets = load_ravdess_features(shared_data / "msa" / "legacy" / "original_ravdess_au_mfcc.pkl")
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 1080, "valid": 180, "test": 180}
    assert (datasets["train"][0]["audio"].shape, datasets["train"][0]["vision"].shape) == ((1, 259), (1, 35))
    # the same clips, their action units found independently, stand in the parquet files under another channel number
    parquet = load_msa_parquet(shared_data / "msa" / "ravdess", "classification")
    known = {row["id"][2:]: row for row in parquet["valid"]}
    for row in datasets["valid"]:
        same = known[row["id"][2:]]
        assert (row["label"], row["text"], row["speaker"]) == (same["label"], same["text"], same["speaker"])
        np.testing.assert_allclose(row["vision"], same["vision"], rtol=1e-5)


@pytest.mark.parametrize("sample_id", ["clip_1", "03-01-09-01-01-01-01", "03-01-05-01-01-01"])
def test_an_id_that_is_not_ravdess_is_named(tmp_path, sample_id):
    path = write(tmp_path / "other.pkl", {sample_id: np.zeros(294)})
    with pytest.raises(ValueError, match=f"{sample_id!r} is not an id of RAVDESS"):
        load_ravdess_features(path)


@pytest.mark.parametrize("length", [-1, 6, 2.5, math.nan])
def test_a_length_that_cannot_be_is_named(tmp_path, length):
    content = {"train": mmsa_split(audio_lengths=[length, 1, 1], vision_lengths=[1, 1, 1])}
    with pytest.raises(ValueError, match="audio_lengths must be a whole number from 0 to 5"):
        load_mmsa_pickle(write(tmp_path / "lengths.pkl", content))


def test_several_labels_in_a_row_are_refused(tmp_path):
    content = {"train": mmsa_split(regression_labels=np.zeros((3, 4)))}
    with pytest.raises(ValueError, match="the label must be a finite number"):
        load_mmsa_pickle(write(tmp_path / "labels.pkl", content))
