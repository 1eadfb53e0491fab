"""The command: one clip in, one answer or one line about what is wrong out."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mse_adapter.__main__ import main
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from tests.hf_mse_adapter.odd_clips import write
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer


@pytest.fixture(scope="module", params=["regression", "classification"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    backbone = build_backbone("Llama")
    backbone.save_pretrained(folder / "llm")
    torch.manual_seed(0)
    labels = {0: "neutral", 1: "joy", 2: "anger"} if request.param == "classification" else None
    sizes = {"audio_dim": 3, "vision_dim": 2}
    config = MseConfig(**sizes, task=request.param, id2label=labels, backbone_name_or_path=str(folder / "llm"))
    model = MseForConditionalGeneration.from_backbone(backbone, config)
    model.save_pretrained(folder / "model")
    MseProcessor.from_config(model.config, build_tokenizer()).save_pretrained(folder / "model")
    np.save(folder / "audio.npy", np.random.default_rng(0).normal(size=(9, 3)))
    np.save(folder / "vision.npy", np.random.default_rng(1).normal(size=2))
    return folder


def test_answers_as_the_pipeline_does(folder, capsys):
    model = str(folder / "model")
    clip = {"text": "Fine.", "audio": str(folder / "audio.npy"), "vision": str(folder / "vision.npy")}
    arguments = ["--model", model, "--device", "cpu", "--speaker", "Ann"]
    arguments += ["--context", "Hi.", "--context", "Bob: Well?"]
    arguments += [word for name, value in clip.items() for word in (f"--{name}", value)]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    pipe = MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(model), processor=MseProcessor.from_pretrained(model), device="cpu"
    )
    expected = pipe({**clip, "speaker": "Ann", "context": ["Hi.", ("Bob", "Well?")]})
    assert answer == json.loads(json.dumps(expected))

    assert main(arguments) == 0
    text = capsys.readouterr().out
    if "value" in expected:
        assert text == f"sentiment intensity {expected['value']:+.2f} ± {expected['spread']:.2f}\n"
    else:
        assert text.splitlines()[0] == f"{expected['score']:6.1%}  {expected['label']}" and len(text.splitlines()) == 3

    assert main([*arguments, "--method", "greedy"]) == 3
    assert capsys.readouterr().out.startswith("no answer: ")


def test_says_in_one_line_what_is_wrong(folder, capsys):
    model, llm, without_processor = (str(folder / name) for name in ("model", "llm", "without_processor"))
    MseForConditionalGeneration.from_pretrained(model).save_pretrained(without_processor)
    for arguments, message in (
        (["--model", model, "--audio", "absent.npy"], "absent.npy"),
        (["--model", model, "--audio", str(folder / "vision.npy")], "audio must be [time, 3]"),
        (["--model", str(folder / "nowhere")], "nowhere"),
        (["--model", llm], llm),
        (["--model", model, "--device", "nonsense"], "--device nonsense cannot be used"),
        (["--model", without_processor], "no processor"),
    ):
        assert main(["--text", "x", "--device", "cpu", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("hf_mse_adapter: ") and message in error


def test_many_clips_go_to_a_table_and_one_comes_from_another_command(folder, tmp_path, capsys, monkeypatch):
    # words alone are made of a clip here; in silence there are none
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", video=None, audio="pcm_s16le", sound=np.zeros(8000, np.float32))
    (tmp_path / "broken.wav").write_text("hello")
    model = ["--model", str(folder / "model"), "--device", "cpu"]
    assert main([str(tmp_path / "[ab].wav"), *model, "--table", str(tmp_path / "table.csv")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["clip"]).name for row in rows] == ["a.wav", "b.wav"]
    assert json.loads(rows[0]["made_from"])["seconds"] == 0.5
    assert main([str(tmp_path / "*.wav"), *model, "--json"]) == 2
    assert ["error" in answer for answer in json.loads(capsys.readouterr().out)] == [False, False, True]

    class Stdin:
        buffer = io.BytesIO((tmp_path / "a.wav").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["-", *model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_from"]["seconds"] == 0.5
    assert main(["-", *model]) == 2
    assert "nothing came on stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "--plot", "x.gif"], "--plot x.gif: expected a name ending in .png"),
        (["a.wav", "--plot", "nowhere/x.png"], "its folder does not exist"),
        (["a.wav", "--table", "x.xls"], "--table x.xls: expected a name ending in .csv"),
        (["a.wav", "b.wav", "--text", "x"], "there are 2 clips, and --text is of one"),
        (["a.wav", "-"], "there are 2 clips, and - is of one"),
        (["*.none"], "no file fits *.none"),
        ([], "there is no clip and no --text"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--model", "nowhere/at-all"]) == 2  # the model is not even looked for
    assert message in capsys.readouterr().err
