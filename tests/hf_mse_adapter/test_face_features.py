"""The face networks against MediaPipe's own files, and faces that are found, followed, measured and refused."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from hf_mse_adapter.clip_decoding import Frame
from hf_mse_adapter.clip_features import ClipReader
from hf_mse_adapter.face_features import (
    EYE_OUTER,
    SHAPE_NAMES,
    FaceGeometry,
    FaceNetworks,
    FaceTracker,
    face_shape,
    own_weights,
)
from tests.hf_mse_adapter.odd_clips import face, pictures, voice


@pytest.fixture(scope="module")
def networks():
    return FaceNetworks.from_file(own_weights())


@torch.inference_mode()
def run_graph(file, name, image):
    """A network as its TFLite file lists it, operation by operation: (outputs), the reference."""
    graph = json.loads(file.metadata()["graph"])[name]
    values = {graph["input"]: image}
    keys = set(file.keys())

    def get(index):
        return values[index] if index in values else file.get_tensor(f"{name}.{index}").float()

    for kind, inputs, output, options in graph["ops"]:
        x = get(inputs[0])
        if "CONV" in kind:
            weight = get(inputs[1])
            if options["pad"] == 0:
                pads = []
                for axis in (3, 2):
                    stride, size = options["s"][axis - 2], x.shape[axis]
                    missing = max((-(-size // stride) - 1) * stride + weight.shape[axis] - size, 0)
                    pads += [missing // 2, missing - missing // 2]
                x = F.pad(x, pads)
            groups = x.shape[1] if kind.startswith("DEPTHWISE") else 1
            y = F.conv2d(x, weight, get(inputs[2]), options["s"], groups=groups)
        elif kind == "MAX_POOL_2D":
            y = F.max_pool2d(x, options["k"], options["s"])
        elif kind == "ADD":
            y = x + get(inputs[1])
        elif kind == "PAD":
            y = F.pad(x, (0, 0, 0, 0, *options["pads"][3]))
        elif kind == "RELU":
            y = x.relu()
        elif kind == "PRELU":
            assert f"{name}.{inputs[1]}" in keys
            y = torch.where(x >= 0, x, x * get(inputs[1]))
        elif kind == "RESHAPE":
            y = x.permute(0, 2, 3, 1).reshape(1, *options["shape"])
        else:
            y = torch.cat([get(index) for index in inputs], options["axis"])
        values[output] = y
    return [values[index] for index in graph["outputs"]]


def test_networks_equal_the_published_graphs(networks, shared_data):
    generator = torch.Generator().manual_seed(0)
    with safe_open(shared_data / "msa" / "face" / "face_fp16.safetensors", "pt") as file, torch.inference_mode():
        for _ in range(2):
            image = torch.rand(1, 3, 192, 192, generator=generator)
            points, presence = run_graph(file, "mesh", image)
            found, found_presence = networks.mesh(image.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(found, points.reshape(468, 3), atol=2e-4, rtol=0)
            torch.testing.assert_close(found_presence, presence.reshape(()), atol=1e-4, rtol=1e-5)
            image = torch.rand(1, 3, 128, 128, generator=generator) * 2 - 1
            boxes, scores = run_graph(file, "detector", image)
            found_scores, found_boxes = networks.detector(image.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(found_boxes, boxes[0], atol=2e-4, rtol=0)
            torch.testing.assert_close(found_scores, scores[0, :, 0], atol=1e-4, rtol=1e-5)


def framed(scale=1.0, angle=0, left=0, top=0, size=(240, 320)):
    """The face on grey, turned by multiples of 90 degrees."""
    small = np.asarray(__import__("PIL.Image", fromlist=["Image"]).fromarray(face()).resize((int(160 * scale),) * 2))
    image = np.full((*size, 3), 90, np.uint8)
    image[top : top + len(small), left : left + len(small)] = small
    return np.ascontiguousarray(np.rot90(image, angle // 90))


def points_of(networks, image):
    tracker = FaceTracker(networks, 10.0, lambda points, presence, image: points)
    tracker.add(Frame(0, 1, image))
    (track,) = tracker.tracks
    return track.rows[0]


def test_features_do_not_depend_on_size_and_place(networks):
    reference = face_shape(points_of(networks, framed(left=80, top=40)))[: len(SHAPE_NAMES)]
    for image in (framed(1.4, size=(480, 640), left=300, top=200), framed(0.7, left=10, top=10)):
        shape = face_shape(points_of(networks, image))[: len(SHAPE_NAMES)]
        assert np.abs(shape - reference).max() < 0.08


def test_shape_of_turned_points_is_the_same():
    """Not by pictures: the measures themselves are free of rotation, size and place."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(468, 3))
    reference = face_shape(points)
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned = face_shape(3.0 * points @ rotation.T + [100, 50, 7])
    np.testing.assert_allclose(turned[: len(SHAPE_NAMES)], reference[: len(SHAPE_NAMES)], atol=1e-9)


def test_an_open_mouth_and_raised_brows_are_measured(networks):
    points = points_of(networks, framed(left=80, top=40))
    before = dict(zip(SHAPE_NAMES, face_shape(points), strict=False))
    moved = points.copy()
    unit = np.linalg.norm(points[EYE_OUTER[0]] - points[EYE_OUTER[1]])
    moved[[14, 17], 1] += 0.2 * unit
    moved[[107, 336, 105, 334, 70, 300], 1] -= 0.1 * unit
    after = dict(zip(SHAPE_NAMES, face_shape(moved), strict=False))
    assert after["mouth_open"] - before["mouth_open"] == pytest.approx(0.2, abs=0.03)
    for name in SHAPE_NAMES[2:8]:
        assert after[name] - before[name] == pytest.approx(0.1, abs=0.03), name


def test_a_followed_face_is_not_looked_for(networks, monkeypatch):
    calls = {"find": 0, "place": 0}
    for name in calls:
        original = getattr(networks, name)

        def counted(*arguments, name=name, original=original):
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(networks, name, counted, raising=False)
    features = FaceGeometry(networks, frame_rate=10.0)
    for index, image in enumerate(pictures(25)):
        features.add(Frame(index, 1, image))
    sequence, seen = features.finish()
    assert seen == {"frames": 25, "frames_with_face": 25} and sequence.values.shape == (25, len(features.names))
    assert calls["find"] == 3 and calls["place"] <= 28


def test_a_face_out_of_sight_stands_still_with_presence_zero(networks):
    features = FaceGeometry(networks, frame_rate=10.0)
    with_face, without = list(pictures(6)), list(pictures(4, "none"))
    for index, image in enumerate([*without, *with_face[:3], *without, *with_face[3:]]):
        features.add(Frame(index, 1, image))
    sequence, seen = features.finish()
    presence = sequence.values[:, features.names.index("presence")]
    assert seen == {"frames": 14, "frames_with_face": 6}
    assert (presence > 0.5).tolist() == [False] * 4 + [True] * 3 + [False] * 4 + [True] * 3
    np.testing.assert_array_equal(sequence.values[7, :24], sequence.values[6, :24])
    assert not sequence.values[[0, 4, 7, 11], 24:48].any()  # no speed where it comes or goes
    assert np.isfinite(sequence.values).all()


def speaking(first_speaks):
    """Two faces, of which one opens its mouth with the voice: tracks by hand, as the tracker leaves them."""
    tracker = FaceTracker(None, 10.0, None)
    from hf_mse_adapter.face_features import FaceTrack

    time = np.arange(40) / 10
    loudness = np.clip(np.sin(2 * np.pi * 1.1 * time), 0, None)
    talk, still = np.zeros((40, 25)), np.zeros((40, 25))
    talk[:, SHAPE_NAMES.index("mouth_open")] = 0.05 + 0.1 * loudness
    still[:, SHAPE_NAMES.index("mouth_open")] = 0.05 + 0.005 * np.sin(7 * time)
    for rows, area in ((talk if first_speaks else still, 0.2), (still if first_speaks else talk, 0.05)):
        tracker.lost.append(FaceTrack(list(range(40)), list(rows), [area] * 40))
    return tracker, loudness, talk


@pytest.mark.parametrize("first_speaks", [True, False])
def test_the_face_that_speaks_is_chosen(first_speaks):
    tracker, loudness, talk = speaking(first_speaks)
    rows, others = tracker.chosen("speaking", loudness)
    assert others == 1 and np.array_equal(np.stack([rows[index] for index in range(40)]), talk)
    rows, _ = tracker.chosen("largest", loudness)
    assert np.array_equal(np.stack([rows[index] for index in range(40)]), talk) == first_speaks


def test_of_two_faces_it_is_said_which(networks):
    for face_choice, words in (("largest", "the largest of 2"), ("speaking", "whose mouth moves with the voice of 2")):
        reader = ClipReader({"vision": {"type": "face_geometry", "face": face_choice}})
        frames = np.stack(list(pictures(30, "two", 320, 240)))
        features = reader.read(wanted=["vision"], frames=frames, frame_rate=25, waveform=voice(), sampling_rate=16000)
        assert words in features.made_from["face"] and features.made_from["frames_with_face"] == 12


def test_an_image_encoder_sees_the_upright_face(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    reader = ClipReader({"vision": {"type": "encoder", "model": str(tmp_path)}})
    frames = np.stack(list(pictures(10)))
    values = reader.read(wanted=["vision"], frames=frames, frame_rate=10).vision.values
    assert values.shape == (10, 16) and np.isfinite(values).all()


def test_weights_of_something_else_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"mesh.stem.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors are not those of the face networks"):
        FaceNetworks.from_file(tmp_path / "other.safetensors")
