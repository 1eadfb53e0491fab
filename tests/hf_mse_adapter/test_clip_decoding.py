"""Clips as people have them: features or one clear line, and never what a decoder makes up."""

import io
import os
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from hf_mse_adapter.clip_decoding import Clip, Frame, Sound, mono, pieces_of_arrays
from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, ClipReader
from tests.hf_mse_adapter.odd_clips import HEIGHT, RATE, WIDTH, face, rotate, voice, write

TIMES = np.cumsum(np.random.default_rng(0).choice([20, 33, 40, 60, 100], 24))
TIMES = TIMES - TIMES[0]
OPUS = {"audio": "libopus", "rate": 48000}
VP9 = {"video": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
FINE = {"qmin": "2", "qmax": "3"}
BOTH, HEARD, SEEN = "both", "heard", "seen"

# name of the file -> how it is written, and what it must give
WHOLE = {
    "base.mp4": ({}, BOTH),
    "base.mkv": (OPUS, BOTH),
    "base.webm": (VP9 | OPUS, BOTH),
    "base.mov": ({"audio": "pcm_s16le"}, BOTH),
    "base.avi": (
        {"video": "mjpeg", "audio": "libmp3lame", "pixels": "yuvj420p", "rate": 44100, "options": FINE},
        BOTH,
    ),
    "hevc.mp4": ({"video": "libx265"}, BOTH),
    "ten_bit.mp4": ({"video": "libx265", "pixels": "yuv420p10le"}, BOTH),
    "av1.mp4": ({"video": "libsvtav1", "options": {"preset": "12"}}, BOTH),
    "ntsc.mp4": ({"frame_rate": Fraction(30000, 1001), "num_frames": 36}, BOTH),
    "two.mp4": ({"kind": "two"}, BOTH),
    "odd_size.mkv": ({"size": (WIDTH + 1, HEIGHT + 1), "pixels": "yuv444p"}, BOTH),
    "varying.mp4": ({"times": TIMES, "num_frames": 24}, BOTH),
    "varying.mkv": (OPUS | {"times": TIMES, "num_frames": 24}, BOTH),
    "varying.webm": (VP9 | OPUS | {"times": TIMES, "num_frames": 24}, BOTH),
    "late_sound.mp4": ({"delay": 0.6}, BOTH),
    "surround.mp4": ({"layout": "5.1"}, BOTH),
    "no_sound.mp4": ({"audio": None}, SEEN),
    "silent.mp4": ({"sound": np.zeros(RATE, np.float32)}, SEEN),
    "no_face.mp4": ({"kind": "none"}, HEARD),
    "tiny.mp4": ({"kind": "none", "size": (32, 32)}, HEARD),
    "one_frame.mp4": ({"num_frames": 1}, BOTH),
    "a.wav": ({"video": None, "audio": "pcm_s16le"}, HEARD),
    "a24.wav": ({"video": None, "audio": "pcm_s24le", "rate": 48000}, HEARD),
    "a32.wav": ({"video": None, "audio": "pcm_f32le"}, HEARD),
    "a8.wav": ({"video": None, "audio": "pcm_u8"}, HEARD),
    "a8k.wav": ({"video": None, "audio": "pcm_s16le", "rate": 8000}, HEARD),
    "mulaw.wav": ({"video": None, "audio": "pcm_mulaw", "rate": 8000}, HEARD),
    "stereo.wav": ({"video": None, "audio": "pcm_s16le", "rate": 44100, "layout": "stereo"}, HEARD),
    "six.wav": ({"video": None, "audio": "pcm_s16le", "rate": 48000, "layout": "5.1"}, HEARD),
    "a.mp3": ({"video": None, "audio": "libmp3lame", "rate": 44100}, HEARD),
    "a.flac": ({"video": None, "audio": "flac"}, HEARD),
    "a.m4a": ({"video": None}, HEARD),
    "a.ogg": (OPUS | {"video": None}, HEARD),
    "a.opus": (OPUS | {"video": None}, HEARD),
    "a.aiff": ({"video": None, "audio": "pcm_s16be"}, HEARD),
    "silent.wav": ({"video": None, "audio": "pcm_s16le", "sound": np.zeros(RATE, np.float32)}, None),
    "ms10.wav": ({"video": None, "audio": "pcm_s16le", "sound": voice()[3000:3160]}, None),
    "empty.wav": (None, None),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """path(name): a clip of the table, made once."""
    folder = tmp_path_factory.mktemp("clips")

    with wave.open(str(folder / "empty.wav"), "wb") as empty:
        empty.setparams((1, 2, RATE, 0, "NONE", None))

    def path(name):
        return folder / name if (folder / name).exists() else write(folder / name, **WHOLE[name][0])

    return path


def test_making_a_clip_leaves_the_priority_of_this_process(clips):
    """Whatever is started later would inherit it."""
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    for name in ("base.mp4", "av1.mp4"):
        assert clips(name).is_file()
        assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == scheduling


@pytest.fixture(scope="module")
def reader():
    return ClipReader(DEFAULT_FRONT_ENDS)


def read(reader, source, **options):
    return reader.read(source, wanted=("audio", "vision"), **options)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_clips_give_what_is_in_them(name, clips, reader):
    found = WHOLE[name][1]
    features = read(reader, clips(name))
    missing = features.made_from.get("missing", {})
    if found in (BOTH, HEARD):
        assert np.isfinite(features.audio.values).all() and features.audio.values.shape[1] == 64
        assert 0.6 < features.audio.step * len(features.audio.values) < 1.3
    else:
        assert features.audio.values is None and missing["audio"]
    if found in (BOTH, SEEN):
        made_from = features.made_from
        assert made_from["frames_with_face"] == made_from["frames"] >= (1 if name == "one_frame.mp4" else 10)
        assert np.isfinite(features.vision.values).all() and features.vision.values.shape[1] == 49
    else:
        assert features.vision.values is None and missing["vision"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("silent.wav", {"audio": "the sound is silent", "vision": "there is no picture"}),
        ("ms10.wav", {"audio": "the sound is too short, 10 ms", "vision": "there is no picture"}),
        ("empty.wav", {"audio": "there is no sound", "vision": "there is no picture"}),
        ("no_face.mp4", {"vision": "no face is seen in 12 frames"}),
        ("no_sound.mp4", {"audio": "there is no sound"}),
    ],
)
def test_what_is_missing_is_said(name, expected, clips, reader):
    assert read(reader, clips(name)).made_from["missing"] == expected


def test_sound_is_the_same_in_every_lossless_container(clips, reader):
    reference = read(reader, clips("a.wav")).audio.values
    for name in ("a.flac", "a32.wav", "base.mov", "a.aiff"):
        values = read(reader, clips(name)).audio.values
        assert values.shape == reference.shape
        # by 16 bits: quiet bands are rounding noise
        np.testing.assert_allclose(np.maximum(values, -8), np.maximum(reference, -8), atol=0.2)


def test_six_equal_channels_are_as_loud_as_one(clips, reader):
    one, six = (read(reader, clips(name)).audio.values for name in ("a24.wav", "six.wav"))
    loud = one > -4
    assert loud.any() and np.abs(one - six)[loud].max() < 0.1


def test_frames_come_by_their_time_not_by_their_number(clips):
    """At each place of the grid, the frame that is shown then; every container tells the same."""
    expected = [int(np.searchsorted(TIMES, 1000 * place / 10 + 0.5, side="right") - 1) for place in range(30)]
    for name in ("varying.mp4", "varying.mkv", "varying.webm"):
        shown = {}
        with Clip(clips(name)) as clip:
            for piece in clip.pieces(audio=False, frame_rate=10):
                shown |= dict.fromkeys(range(piece.index, piece.index + piece.count), piece.image)
        assert sorted(shown) == list(range(len(shown))) and len(shown) >= TIMES[-1] / 100
        with av.open(str(clips(name))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for place, image in shown.items():
            assert np.array_equal(image, frames[expected[place]]), (name, place)


def test_a_frame_that_stands_is_decoded_once(tmp_path):
    path = write(tmp_path / "still.mkv", num_frames=3, times=[0, 2000, 4000], sound=voice(4.0))
    with Clip(path) as clip:
        pieces = list(clip.pieces(audio=False, frame_rate=10))
    assert [(piece.index, piece.count) for piece in pieces][:2] == [(0, 20), (20, 20)]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_clips_are_turned_back(degrees, tmp_path, reader):
    upright = write(tmp_path / "upright.mp4", size=(HEIGHT, HEIGHT))
    # a phone stores the picture turned the other way
    sideways = tmp_path / "sideways.mp4"
    with av.open(str(upright)) as source, av.open(str(sideways), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = HEIGHT, HEIGHT, "yuv420p"
        for frame in source.decode(video=0):
            turned = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), degrees // 90))
            target.mux(stream.encode(av.VideoFrame.from_ndarray(turned, format="rgb24")))
        target.mux(stream.encode(None))
    expected = read(reader, upright).vision.values
    found = read(reader, rotate(sideways.read_bytes(), degrees)).vision.values
    names = list(reader_names())
    assert np.abs(found[:, names.index("roll")]).max() < 0.2
    assert np.abs(found - expected)[:, :21].max() < 0.1


def reader_names():
    from hf_mse_adapter.face_features import FaceGeometry

    return FaceGeometry.names


def test_late_sound_stays_late(clips):
    with Clip(clips("late_sound.mp4")) as clip:
        starts = [piece.start for piece in clip.pieces() if isinstance(piece, Sound)]
    assert starts[0] == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cut.mp4", "no clip that can be read, or it was cut"),
        ("cut.mkv", "was cut, or is damaged from there on|is damaged at"),
        ("cut.wav", r"was cut: its header states \d+ bytes of sound, but \d+ are there"),
        ("cut.flac", "was cut|is damaged at"),
        ("cut.avi", "was cut|is damaged at"),
        ("corrupt.mp4", r"is damaged at 0\.[2-9]\d s"),
        ("corrupt.mkv", r"is damaged at 0\.[2-9]\d s|was cut"),
        ("text.mp4", "no clip that can be read"),
        ("text.wav", "no clip that can be read"),
        ("text.mp3", "no clip that can be read"),
        ("zero.mp4", "no clip that can be read"),
        ("picture.mp4", "no clip that can be read"),
        ("picture.png", "no clip that can be read"),
        ("playlist.m3u8", "no clip that can be read"),
        ("playlist.mp4", "no clip that can be read"),
        ("concat.mp4", "no clip that can be read"),
    ],
)
def test_broken_clips_are_refused_in_one_line(name, message, clips, tmp_path, reader):
    path = tmp_path / name
    stem, suffix = name.split(".")
    if stem in ("cut", "corrupt"):
        source = {"wav": "a.wav", "flac": "a.flac"}.get(suffix, f"base.{suffix}")
        content = bytearray(clips(source).read_bytes())
        middle = len(content) // 2
        if stem == "cut":
            content = content[:middle]
        else:
            content[middle : middle + 1200] = np.random.default_rng(0).bytes(1200)
        path.write_bytes(content)
    elif stem == "picture":
        from PIL import Image

        Image.fromarray(face()).save(path, format="PNG")
    else:
        inside = clips("a.wav").resolve()
        content = {
            "text": "hello world\n" * 100,
            "zero": "",
            "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{inside}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{inside}'\n",
        }
        path.write_text(content[stem])
    with pytest.raises(ValueError, match=message) as raised:
        read(reader, path)
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_the_name_does_not_matter(clips, tmp_path, reader):
    for source, name in (("a.wav", "sound.mp4"), ("base.mp4", "video.wav"), ("base.webm", "clip")):
        (tmp_path / name).write_bytes(clips(source).read_bytes())
        for one, other in zip(read_values(reader, tmp_path / name), read_values(reader, clips(source)), strict=True):
            np.testing.assert_array_equal(one, other)


def read_values(reader, source):
    features = read(reader, source)
    return [np.zeros(0) if part.values is None else part.values for part in (features.audio, features.vision)]


def test_paths_bytes_and_file_objects_are_one(clips, reader):
    path = clips("base.mp4")

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.file = open(path, "rb")  # noqa: SIM115

        def read(self, size=-1):
            return self.file.read(size)

    expected = read_values(reader, path)
    with open(path, "rb") as file:
        for source in (str(path), path.read_bytes(), file, Pipe()):
            for one, other in zip(read_values(reader, source), expected, strict=True):
                np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="opened as binary"), open(path) as file:
        Clip(file)
    with pytest.raises(ValueError, match="path, bytes or a binary file object, but is float"):
        Clip(1.5)
    with pytest.raises(OSError, match=r"no clip 'nowhere\.mp4'"):
        Clip("nowhere.mp4")


def test_a_cover_picture_is_no_video(clips, tmp_path, reader):
    path = tmp_path / "covered.mp3"
    with av.open(str(path), "w") as target:
        sound = target.add_stream("libmp3lame", rate=44100)
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 160, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(cover.encode(av.VideoFrame.from_ndarray(face(), format="rgb24")))
        target.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(voice(2.0, 44100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=44100)
        for part in resampler.resample(frame):
            target.mux(sound.encode(part))
        target.mux(sound.encode(None))
    with Clip(path) as clip:
        assert clip.has_audio and not clip.has_video
    assert read(reader, path).audio.values is not None


def test_a_part_of_a_clip(tmp_path, reader):
    path = write(tmp_path / "long.mp4", num_frames=100, sound=voice(4.0))
    part = read(reader, path, start=1.0, end=2.5)
    assert part.made_from["frames"] == 15 and 1.2 < len(part.audio.values) * 0.04 <= 1.6
    with pytest.raises(ValueError, match="start is 9"):
        read(reader, path, start=9.0)
    with pytest.raises(ValueError, match="expected a later end"):
        read(reader, path, start=2.0, end=1.0)


def test_arrays_give_what_their_file_gives(clips, reader):
    expected = read(reader, clips("a32.wav")).audio.values
    with av.open(str(clips("a32.wav"))) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    for waveform in (samples, samples[None], np.stack([samples, samples], axis=1)):
        features = reader.read(wanted=["audio"], waveform=waveform, sampling_rate=RATE)
        np.testing.assert_array_equal(features.audio.values, expected)
    with av.open(str(clips("base.mp4"))) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    features = reader.read(wanted=["vision"], frames=frames, frame_rate=25)
    np.testing.assert_array_equal(features.vision.values, read(reader, clips("base.mp4")).vision.values)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"waveform": np.zeros(9)}, "sampling_rate is None"),
        ({"waveform": np.zeros(9), "sampling_rate": 0}, "sampling_rate is 0"),
        ({"waveform": np.zeros((2, 2, 9)), "sampling_rate": 16000}, r"waveform must be \[n\]"),
        ({"waveform": [np.nan] * 9, "sampling_rate": 16000}, "NaN or infinite"),
        ({"waveform": ["a"], "sampling_rate": 16000}, "waveform must hold floats"),
        ({"frames": np.zeros((2, 8, 8, 3), np.uint8)}, "frame_rate is None"),
        ({"frames": np.zeros((2, 8, 8, 3)), "frame_rate": 25}, "frames must be uint8"),
        ({"frames": np.zeros((8, 8, 3), np.uint8), "frame_rate": 25}, "frames must be uint8"),
    ],
)
def test_bad_arrays_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        list(pieces_of_arrays(**arrays, grid_rate=10))


def test_mono_counts_integers_by_their_full_scale():
    np.testing.assert_array_equal(mono(np.array([[-32768, 16384]], np.int16)), [-1.0, 0.5])
    np.testing.assert_array_equal(mono(np.array([[0, 192]], np.uint8)), [-1.0, 0.5])
    np.testing.assert_array_equal(mono(np.array([[1.0, 0.0, 0.5, 0.25]]), 2, is_planar=False), [0.5, 0.375])


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Pieces are small, whatever the clip's length: none is longer than about a second."""
    path = write(tmp_path / "long.mkv", num_frames=200, kind="none", size=(32, 32), sound=voice(8.0))
    with Clip(path) as clip:
        pieces = list(clip.pieces(frame_rate=10))
    assert max(len(piece.samples) for piece in pieces if isinstance(piece, Sound)) <= 1.2 * RATE
    assert all(piece.count <= 2 for piece in pieces if isinstance(piece, Frame))
    assert os.path.getsize(path) > 0
