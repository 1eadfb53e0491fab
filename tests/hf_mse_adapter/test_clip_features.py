"""Whole clips through processor, pipeline and command: what is read, what is not and why, what moved the answer."""

import base64
import json
import sys
import threading

import numpy as np
import pytest
import torch

from hf_mse_adapter import clip_features
from hf_mse_adapter.__main__ import main
from hf_mse_adapter.audio_features import Loudness
from hf_mse_adapter.clip_decoding import Sound
from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, ClipReader, checked_front_ends, parse_front_end
from hf_mse_adapter.clip_plotting import pitch_of
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub
from hf_mse_adapter.speech_recognition import speech_spans
from tests.hf_mse_adapter.odd_clips import RATE, pictures, voice, write
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer
from training.fresh_process import run_fresh

EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=50, sound=voice(2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published model that classifies by words, voice and face."""
    folder = tmp_path_factory.mktemp("models")
    backbone = build_backbone("Llama")
    backbone.save_pretrained(folder / "llm")
    torch.manual_seed(0)
    config = MseConfig(
        audio_dim=64,
        vision_dim=49,
        task="classification",
        id2label=EMOTIONS,
        backbone_name_or_path=str(folder / "llm"),
    )
    model = MseForConditionalGeneration.from_backbone(backbone, config)
    processor = MseProcessor.from_config(model.config, build_tokenizer(), front_ends=DEFAULT_FRONT_ENDS)
    save_for_hub(model, processor, folder / "model")
    heard = MseProcessor.from_config(
        model.config, build_tokenizer(), front_ends={"audio": {"type": "log_mel"}}, modalities=["audio"]
    )
    save_for_hub(model, heard, folder / "voice")
    read = MseProcessor.from_config(model.config, build_tokenizer(), modalities=["text"])
    save_for_hub(model, read, folder / "words")
    return folder


def pipeline_of(folder, **options):
    return MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(folder),
        processor=MseProcessor.from_pretrained(folder),
        device="cpu",
        **options,
    )


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline_of(folder / "model")


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    """A folder of a tiny random CTC recognizer."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("recognizer")
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}))
    torch.manual_seed(0)
    Wav2Vec2ForCTC(
        Wav2Vec2Config(vocab_size=5, pad_token_id=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, conv_dim=(8,) * 7, num_conv_pos_embeddings=8,
                       num_conv_pos_embedding_groups=2)
    ).save_pretrained(folder)  # fmt: skip
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token="<pad>", unk_token="<pad>")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


def test_given_and_made_are_mixed(pipe, clip):
    made = pipe.reader.read(clip, wanted=("audio", "vision"))
    audio, vision = made.audio.values, made.vision.values
    expected = pipe({"text": "Fine.", "audio": audio, "vision": vision})
    for sample, given in (
        ({"clip": str(clip), "text": "Fine."}, ["text"]),
        ({"clip": clip, "text": "Fine.", "audio": audio}, ["text", "audio"]),
        ({"clip": clip.read_bytes(), "text": "Fine.", "video": vision}, ["text", "vision"]),
        ({"clip": clip, "text": "Fine.", "acoustic": audio, "visual": vision}, ["text", "audio", "vision"]),
    ):
        answer = pipe(sample)
        assert answer.pop("made_from")["given"] == given and answer == expected


def test_alone_and_in_a_batch(pipe, clip):
    clips = [{"clip": clip, "text": "Fine."}, {"clip": clip, "text": "No, and no again.", "end": 0.9}]
    alone = [pipe(sample) for sample in clips]
    for answer, expected in zip(pipe(clips, batch_size=2), alone, strict=True):
        assert answer["made_from"] == expected["made_from"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_threads_read_clips_at_once(pipe, clip):
    expected = pipe({"clip": clip, "text": "Fine."})
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(pipe({"clip": clip, "text": "Fine."}))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 3


def test_the_result_says_what_it_was_made_from(pipe, clip, folder):
    made_from = pipe({"clip": clip, "text": "Fine."})["made_from"]
    assert made_from["frames"] == made_from["frames_with_face"] == 20 and 1.9 < made_from["seconds"] < 2.2
    assert 1.0 < made_from["speech_seconds"] <= 2.1 and made_from["given"] == ["text"]
    silent = {"waveform": np.zeros(RATE, np.float32), "sampling_rate": RATE}
    answer = pipe(silent)  # nobody speaks: no recognizer is asked for
    assert answer["made_from"]["missing"] == {
        "text": "nobody speaks",
        "audio": "the sound is silent",
        "vision": "there is no picture",
    }
    assert answer["made_from"]["transcript"] == "" and "label" in answer


def test_a_model_is_asked_only_for_what_it_was_trained_on(folder, clip, recognizer):
    hears = pipeline_of(folder / "voice")
    answer = hears(clip)
    assert answer["made_from"]["unread"] == dict.fromkeys(("text", "vision"), "the model was not trained on it")
    assert "transcript" not in answer["made_from"] and "frames" not in answer["made_from"]
    other = hears({"clip": clip, "text": "Something else.", "context": ["Before."]})
    assert other["probabilities"] == answer["probabilities"]
    plain = hears({"text": "x", "audio": hears.reader.read(clip, wanted=["audio"]).audio.values})
    assert plain["probabilities"] == answer["probabilities"]
    assert plain["made_from"] == {"given": ["text", "audio"], "unread": {"text": "the model was not trained on it"}}

    reads = pipeline_of(folder / "words", speech_recognizer=recognizer)
    answer = reads(clip)
    assert set(answer["made_from"]["unread"]) == {"audio", "vision"}
    assert answer["probabilities"] == reads({"text": answer["made_from"]["transcript"]})["probabilities"]


@pytest.mark.slow
def test_words_are_heard_by_another_recognizer(folder, clip, recognizer):
    pipe = pipeline_of(folder / "model", speech_recognizer=recognizer)
    heard = pipe(clip)
    assert set(heard["made_from"]["transcript"]) <= set("abc ") and heard["made_from"]["transcript"]
    without = pipeline_of(folder / "model", speech_recognizer="nowhere/to-be-found")
    with pytest.raises(OSError, match="words are recognized by nowhere/to-be-found, which cannot be loaded: give the"):
        without(clip)
    assert without({"clip": clip, "text": heard["made_from"]["transcript"]})["score"] == heard["score"]


def test_explain_says_what_each_modality_adds(pipe, clip):
    answer = pipe({"clip": clip, "text": "Fine."}, explain=True)
    assert list(answer["without"]) == ["text", "audio", "vision"]
    made = pipe.reader.read(clip, wanted=("audio", "vision"))
    whole = {"text": "Fine.", "audio": made.audio.values, "vision": made.vision.values}
    for name, left in (("text", ""), ("audio", None), ("vision", None)):
        alone = pipe(whole | {name: left})
        without = answer["without"][name]
        assert without["label"] == alone["label"]
        assert without["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        difference = answer["score"] - alone["probabilities"][answer["label"]]
        assert without["difference"] == pytest.approx(difference, abs=1e-5)
    assert "without" not in pipe({"clip": clip, "text": "Fine."})
    assert list(pipe({"text": "Fine."}, explain=True)["without"]) == ["text"]


def test_a_conversation_carries_its_context(pipe, clip):
    turns = [
        {"start": 0.0, "end": 0.8, "speaker": "Ann", "text": "Hello."},
        {"start": 0.8, "end": 1.9, "speaker": "Bob", "text": "No."},
    ]
    first, second = pipe.read_conversation(clip, turns)
    assert (first["speaker"], second["speaker"], second["text"]) == ("Ann", "Bob", "No.")
    expected = pipe({"clip": clip, **turns[1], "context": [("Ann", "Hello.")]})
    assert second["probabilities"] == expected["probabilities"]
    assert second["probabilities"] != pipe({"clip": clip, **turns[1]})["probabilities"]
    with pytest.raises(ValueError, match="turn 0 has no end"):
        pipe.read_conversation(clip, [{"start": 1.0}])


def test_the_command_reads_a_clip(folder, clip, tmp_path, capsys):
    arguments = [str(clip), "--model", str(folder / "model"), "--text", "Fine.", "--device", "cpu"]
    picture = tmp_path / "clip.png"
    assert main([*arguments, "--explain", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "without voice: " in out and "a face in 20 of 20 frames" in out and "speech in " in out
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20000
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_from"]["given"] == ["text"]
    turns = tmp_path / "turns.csv"
    turns.write_text("start,end,speaker,text\n0,0.8,Ann,Hello.\n0.8,1.9,Bob,No.\n")
    arguments = [str(clip), "--model", str(folder / "model"), "--device", "cpu", "--turns", str(turns)]
    assert main([*arguments, "--plot", str(tmp_path / "talk.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].split()[:2] == ["0.8-1.9", "Bob"] and lines[2].endswith("No.")
    assert b"<svg" in (tmp_path / "talk.svg").read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "there is no clip and no --text"),
        (["nowhere.mp4"], "there is no clip 'nowhere.mp4'"),
        (["--text", "a", "--plot", "a.png"], "--plot needs a clip"),
        (["CLIP", "--turns", "missing.csv"], "No such file"),
        (["CLIP", "--turns", "BAD"], "expected start, end, speaker, text"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(arguments, message, folder, clip, tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("from,to\n1,2\n")
    places = {"CLIP": str(clip), "BAD": str(tmp_path / "bad.csv")}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert main([*arguments, "--model", str(folder / "voice"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_published_folder_reads_clips_by_itself(folder, clip, tmp_path):
    """Without this package: the code and the face networks' weights come from the folder; the handler takes bytes."""
    code = f"""
import json, sys
sys.path.insert(0, {str(folder / "model")!r})
from transformers import pipeline
pipe = pipeline("multimodal-sentiment", model={str(folder / "model")!r}, trust_remote_code=True, device="cpu")
answers = [pipe({{"clip": {str(clip)!r}, "text": "Fine."}})]
assert "hf_mse_adapter" not in sys.modules
from handler import EndpointHandler
handler = EndpointHandler({str(folder / "model")!r})
request = json.load(open("request.json"))
answers += [handler({{"inputs": request}}), handler({{"inputs": [request, {{"text": "Fine."}}]}})[0]]
paths = [{{"clip": path}} for path in ({str(clip)!r}, "/etc/passwd", 7)]
for bad in (*paths, {str(clip)!r}, {{"video": {str(clip)!r}, "text": "a"}}):
    try:
        answers.append(handler({{"inputs": bad}}))
    except ValueError as error:
        answers.append({{"error": str(error)}})
print(json.dumps(answers))
"""
    request = {"clip": base64.b64encode(clip.read_bytes()).decode(), "text": "Fine."}
    (tmp_path / "request.json").write_text(json.dumps(request))
    one, posted, listed, *refused = json.loads(run_fresh(code, tmp_path).splitlines()[-1])
    expected = pipeline_of(folder / "model")({"clip": clip, "text": "Fine."})
    for answer in (one, posted, listed):
        assert answer["made_from"] == expected["made_from"]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert all(list(answer) == ["error"] for answer in refused), refused


def test_front_ends_are_saved_with_the_processor(folder):
    processor = MseProcessor.from_pretrained(folder / "model")
    assert processor.front_ends == checked_front_ends(DEFAULT_FRONT_ENDS) and processor.modalities is None
    assert MseProcessor.from_pretrained(folder / "voice").modalities == ["audio"]
    again = folder / "again"
    processor.save_pretrained(again)
    assert MseProcessor.from_pretrained(again).front_ends == processor.front_ends
    weights = (again / "face_landmarks.safetensors").read_bytes()
    assert weights == (folder / "model" / "face_landmarks.safetensors").read_bytes()


@pytest.mark.parametrize(
    "front_ends, message",
    [
        ({"sound": {}}, "must hold text, audio and vision, but has"),
        ({"audio": {"type": "mfcc"}}, "audio is .*; expected a type of log_mel, egemaps, encoder"),
        ({"audio": {"type": "log_mel", "bands": 3}}, r"audio has \['bands'\]"),
        ({"audio": {"type": "encoder"}}, "model of audio is None"),
        ({"vision": {"type": "face_geometry", "frame_rate": 0}}, "frame_rate is 0"),
        ({"vision": {"type": "face_geometry", "face": "smallest"}}, "face of vision is 'smallest'"),
        ({"text": {"type": "speech_recognition", "gate": "none"}}, "gate of text is 'none'"),
    ],
)
def test_bad_front_ends_are_named(front_ends, message):
    with pytest.raises(ValueError, match=message):
        checked_front_ends(front_ends)


def test_a_processor_refuses_front_ends_of_another_width():
    config = MseConfig(audio_dim=3, vision_dim=2)
    with pytest.raises(ValueError, match="front_ends makes 64 features of audio, but audio_dim is 3"):
        MseProcessor.from_config(config, build_tokenizer(), front_ends=DEFAULT_FRONT_ENDS)
    with pytest.raises(ValueError, match="modalities must be some of text, audio and vision"):
        MseProcessor.from_config(config, build_tokenizer(), modalities=["sound"])


def test_front_ends_from_a_command_line():
    assert parse_front_end("audio", "log_mel") == {"type": "log_mel"}
    assert parse_front_end("audio", "encoder:openai/whisper-tiny:4") == {
        "type": "encoder",
        "model": "openai/whisper-tiny",
        "layer": 4,
    }
    assert parse_front_end("vision", "encoder:a/b") == {"type": "encoder", "model": "a/b"}
    assert parse_front_end("text", "a/b") == {"type": "speech_recognition", "model": "a/b"}


@pytest.mark.parametrize(
    "sample, message",
    [
        ({"clip": "a.mp4", "waveform": np.zeros(9)}, "expected a clip, or waveform"),
        ({"sampling_rate": 16000}, "expected a clip, or waveform"),
        ({"waveform": np.zeros(9), "sampling_rate": 16000, "end": 2.0}, "has end, which chooses a part of a clip"),
        ({"clip": "a.mp4", "start": -1.0}, "start of sample 0 is -1.0; expected seconds"),
        ({"text": "a", "vision": "a.mp4"}, "a video or sound file is given as 'clip'|no .npy file"),
    ],
)
def test_bad_raw_samples_are_named(pipe, sample, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(ValueError, match=message):
        pipe(sample)


def speech(samples):
    loudness = Loudness()
    loudness.add(Sound(0.0, np.asarray(samples, np.float32), RATE))
    return speech_spans(loudness)


def test_where_nobody_speaks_nothing_is_heard():
    generator = np.random.default_rng(0)
    assert speech(np.zeros(RATE)) == [] and speech(0.05 * generator.normal(size=2 * RATE)) == []
    ((begin, end),) = speech(np.concatenate([np.zeros(RATE), voice(1.2), np.zeros(RATE)]))
    assert begin == pytest.approx(0.95, abs=0.1) and end == pytest.approx(2.1, abs=0.3)
    noisy = np.concatenate([np.zeros(RATE), voice(1.2), np.zeros(RATE)]) + 0.004 * generator.normal(size=51200)
    assert len(speech(noisy)) == 1


def test_pitch_is_found():
    time = np.arange(RATE) / RATE
    for hertz in (90.0, 150.0, 310.0):
        tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))
        np.testing.assert_allclose(pitch_of(0.1 * tone.astype(np.float32)), hertz, rtol=0.03)
    assert np.isnan(pitch_of(np.zeros(RATE, np.float32))).all()
    assert np.isnan(pitch_of(0.1 * np.random.default_rng(0).normal(size=RATE).astype(np.float32))).mean() > 0.9


def test_without_pyav_it_is_said_what_to_install(monkeypatch, clip):
    monkeypatch.setattr("hf_mse_adapter.clip_decoding.av", None)
    with pytest.raises(ImportError, match=r"pip install 'av>=18,<20'"):
        ClipReader(DEFAULT_FRONT_ENDS).read(clip, wanted=["audio"])


def test_a_clip_cannot_give_what_no_front_end_makes(clip):
    with pytest.raises(ValueError, match="front_ends has no vision, so no clip can give it"):
        ClipReader({"audio": {"type": "log_mel"}}).read(clip, wanted=["vision"])
    assert clip_features.feature_width({"type": "log_mel", "window": 4}) == 192
    assert "torchvision" not in sys.modules and "torchaudio" not in sys.modules
    assert len(list(pictures(1))) == 1
