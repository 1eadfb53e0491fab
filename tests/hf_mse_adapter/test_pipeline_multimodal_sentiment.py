"""The pipeline: clips in as people have them, plain numbers and names out, and a folder that brings it back."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer

EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}


def build_pipeline(folder=None, **fields):
    backbone = build_backbone("Qwen2")
    if folder is not None:
        backbone.save_pretrained(folder / "llm")
        fields["backbone_name_or_path"] = str(folder / "llm")
    torch.manual_seed(0)
    model = MseForConditionalGeneration.from_backbone(backbone, MseConfig(audio_dim=3, vision_dim=2, **fields))
    processor = MseProcessor.from_config(model.config, build_tokenizer())
    return MultimodalSentimentPipeline(model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def regression():
    return build_pipeline(label_step=1 / 3)


@pytest.fixture(scope="module")
def classification():
    return build_pipeline(task="classification", id2label=EMOTIONS)


@pytest.fixture
def clips():
    generator = np.random.default_rng(0)
    return [
        {"text": "I love it", "audio": generator.normal(size=(5, 3)), "vision": generator.normal(size=(4, 2))},
        {"text": "no", "audio": [[0.1, 0.2, 0.3]]},
        {"text": "and then?", "vision": generator.normal(size=2), "context": [("Ann", "Hi.")], "speaker": "Bob"},
        {"text": "", "id": "clip_4", "label": 1.0},
    ]


def test_regression_gives_value_and_spread(regression, clips):
    for answer in regression(clips):
        assert set(answer) == {"value", "spread"}
        assert -3 < answer["value"] < 3 and answer["spread"] > 0


def test_classification_gives_label_score_and_probabilities(classification, clips):
    for answer in classification(clips):
        assert set(answer) == {"label", "score", "probabilities"}
        assert set(answer["probabilities"]) == set(EMOTIONS.values())
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["score"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]
        json.dumps(answer)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_and_iterables_answer_like_single_clips(regression, clips, batch_size):
    alone = [regression(clip) for clip in clips]
    assert isinstance(alone[0], dict)
    for inputs in (clips, tuple(clips), (clip for clip in clips), iter(clips)):
        for answer, expected in zip(regression(inputs, batch_size=batch_size), alone, strict=True):
            assert answer == pytest.approx(expected, abs=1e-4)
    words = [{"text": "I love it"}, {"text": "no"}]
    assert list(regression(Dataset.from_list(words), batch_size=2)) == regression(words, batch_size=2)
    assert regression([]) == []


def test_npy_files_are_arrays(regression, clips, tmp_path):
    np.save(tmp_path / "audio.npy", clips[0]["audio"])
    np.save(tmp_path / "vision.npy", clips[0]["vision"])
    files = {"text": "I love it", "audio": str(tmp_path / "audio.npy"), "vision": tmp_path / "vision.npy"}
    assert regression(files) == regression(clips[0])


def test_what_is_heard_and_seen_changes_the_answer(regression, clips):
    assert regression(clips[0])["value"] != regression({**clips[0], "audio": None})["value"]
    assert regression(clips[0])["value"] != regression({**clips[0], "vision": -clips[0]["vision"]})["value"]


def test_methods(regression, classification, clips):
    assert set(regression(clips[0], method="constrained")) == {"value"}
    assert set(classification(clips[0], method="constrained")) == {"label"}
    answer = regression(clips[0], method="greedy")
    assert answer["value"] is None and "is not a number" in answer["problem"]


def test_head(clips):
    pipe = build_pipeline(head="alone")
    assert -3 <= pipe(clips[0])["value"] <= 3
    pipe = build_pipeline(head="beside", task="classification", id2label=EMOTIONS)
    assert sum(pipe(clips[0])["probabilities"].values()) == pytest.approx(1)
    assert pipe(clips[0], method="head") == pipe(clips[0]) != pipe(clips[0], method="likeliest")


def test_a_string_is_the_path_of_a_clip(regression):
    with pytest.raises(FileNotFoundError, match="no clip 'just words'"):
        regression("just words")


def test_bad_clips_are_named(regression, tmp_path):
    (tmp_path / "no.npy").write_text("hello")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "several.npz", np.ones(3))
    for clip, message in (
        ({"text": "x", "visions": [[1, 2]]}, r"has \['visions'\]"),
        (3, "must be a dict"),
        ({"audio": [[1, 2, 3]]}, "text must be a string, but sample 0 has None"),
        ({"text": "x", "audio": np.zeros((4, 2))}, r"audio must be \[time, 3\]"),
        ({"text": "x", "audio": str(tmp_path / "no.npy")}, r"no\.npy is no \.npy file"),
        ({"text": "x", "audio": str(tmp_path / "pickled.npy")}, r"pickled\.npy is no \.npy file"),
        ({"text": "x", "audio": str(tmp_path / "several.npz")}, r"several\.npz is no \.npy file"),
    ):
        with pytest.raises(ValueError, match=message):
            regression(clip)
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        regression({"text": "x", "vision": "absent.npy"})
    clips = [{"text": "x"}, {"text": "x"}, {"text": "x", "audio": [[1.0]]}]
    for batch_size, message in ((3, "sample 2 has"), (1, r"sample 0 has .* \(counted from number 2 of all\)")):
        with pytest.raises(ValueError, match=message):
            regression(clips, batch_size=batch_size)
    for batch_size in (0, "2"):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size!r}"):
            regression(clips, batch_size=batch_size)


def test_saved_folder_brings_the_pipeline_back(clips, tmp_path):
    pipe = build_pipeline(tmp_path, task="classification", id2label=EMOTIONS)
    pipe.save_pretrained(tmp_path / "model")
    loaded = pipeline("multimodal-sentiment", model=str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert type(loaded).__name__ == "MultimodalSentimentPipeline"
    for answer, expected in zip(loaded(clips), pipe(clips), strict=True):
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)

    handler = endpoint_handler()(str(tmp_path / "model"))
    inputs = [{**clips[0], "audio": clips[0]["audio"].tolist(), "vision": clips[0]["vision"].tolist()}, clips[1]]
    payload = json.loads(json.dumps({"inputs": inputs, "parameters": {"explain": False}}))
    answers = json.loads(json.dumps(handler(payload)))
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in pipe(clips[:2])]
    assert handler({"inputs": inputs[1]})["label"] == answers[1]["label"]
    for request, error in (
        ({"inputs": {"text": "x", "audio": "/etc/hostname"}}, "not file names"),
        ({"inputs": ["x"]}, "not a file name"),
        ({"inputs": {"text": "x", "audio": [[1.0]]}}, "audio must be"),
        ({"parameters": {}}, "a request must be"),
        (None, "a request must be"),
        ({"inputs": {"text": "x"}, "parameters": {"wrong": 1}}, "wrong"),
    ):
        with pytest.raises(ValueError, match=error):
            handler(request)


def endpoint_handler():
    path = Path(__file__).resolve().parents[2] / "model_cards" / "mse_adapter" / "handler.py"
    specification = importlib.util.spec_from_file_location("handler", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.EndpointHandler
