"""Folders stay what they are: those of an earlier release load and answer as they did, and load -> save -> load gives
the same folder again, whichever way it is loaded and saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

import hf_ecgmamba
import hf_mse_adapter
from hf_mse_adapter.__main__ import main

# made by the code of commit 4a3820f; weights and settings, without the code that travelled along
PUBLISHED = Path(__file__).parent / "published"
SCORES = json.loads((PUBLISHED / "scores.json").read_text(encoding="utf-8"))
CLIP = {"text": "I love it", "audio": [[0.5, -1.0, 0.2, 0.0, 1.0]] * 3, "vision": [[1.0, 0.0, -1.0, 0.5]] * 2}


def test_an_earlier_ecgmamba_answers_as_it_did():
    model = hf_ecgmamba.EcgMambaForSequenceClassification.from_pretrained(PUBLISHED / "ecgmamba").eval()
    signal = torch.randn(2, 12, 400, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model(signal).logits, torch.tensor(SCORES["ecgmamba"]), atol=1e-5)
    extractor = hf_ecgmamba.EcgMambaFeatureExtractor.from_pretrained(PUBLISHED / "ecgmamba")
    assert extractor.optional_leads == ("V6",) and model.config.thresholds == [0.3, 0.5, 0.4]


@pytest.mark.parametrize("name", ["mse", "mse_head"])
def test_an_earlier_mse_adapter_answers_as_it_did(name):
    llm = hf_mse_adapter.MseForConditionalGeneration.from_pretrained(PUBLISHED / "mse").language_model
    model = hf_mse_adapter.MseForConditionalGeneration.from_pretrained(PUBLISHED / name, backbone=llm)
    processor = hf_mse_adapter.MseProcessor.from_pretrained(PUBLISHED / name)
    prediction = model.predict(processor.collate([CLIP]), processor.answers)[0]
    came = prediction.value if name == "mse" else prediction.probabilities
    assert came == pytest.approx(SCORES[name], abs=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same two models as today's `save_for_hub` writes them."""
    folder = tmp_path_factory.mktemp("folders")
    model = hf_ecgmamba.EcgMambaForSequenceClassification.from_pretrained(PUBLISHED / "ecgmamba")
    extractor = hf_ecgmamba.EcgMambaFeatureExtractor.from_pretrained(PUBLISHED / "ecgmamba")
    hf_ecgmamba.save_for_hub(model, extractor, folder / "ecgmamba")
    model = hf_mse_adapter.MseForConditionalGeneration.from_pretrained(PUBLISHED / "mse")
    processor = hf_mse_adapter.MseProcessor.from_pretrained(PUBLISHED / "mse")
    hf_mse_adapter.save_for_hub(model, processor, folder / "mse")
    return folder


def save_through_pipeline(kind, source, target):
    task = {"ecgmamba": "ecg-classification", "mse": "multimodal-sentiment"}[kind]
    pipeline(task, model=str(source), trust_remote_code=True).save_pretrained(target)


def save_through_auto_classes(kind, source, target):
    model_class = AutoModelForSequenceClassification if kind == "ecgmamba" else AutoModel
    reader_class = AutoFeatureExtractor if kind == "ecgmamba" else AutoProcessor
    model_class.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
    reader_class.from_pretrained(source, trust_remote_code=True).save_pretrained(target)


def save_for_hub_again(kind, source, target):
    model_class = AutoModelForSequenceClassification if kind == "ecgmamba" else AutoModel
    reader_class = AutoFeatureExtractor if kind == "ecgmamba" else AutoProcessor
    save = {"ecgmamba": hf_ecgmamba.save_for_hub, "mse": hf_mse_adapter.save_for_hub}[kind]
    model = model_class.from_pretrained(source, trust_remote_code=True)
    save(model, reader_class.from_pretrained(source, trust_remote_code=True), target)


def answer(kind, folder):
    """Through the folder's own code."""
    if kind == "mse":
        return pipeline("multimodal-sentiment", model=str(folder), trust_remote_code=True)(CLIP)
    read = pipeline("ecg-classification", model=str(folder), trust_remote_code=True)
    signal = torch.randn(12, 400, generator=torch.Generator().manual_seed(1)).numpy()
    # nobody's heart: what is said of the signal does not matter here
    leads = list(read.feature_extractor.leads)
    return read({"array": signal, "sampling_rate": 100, "units": "mV", "leads": leads})


@pytest.mark.parametrize("save", [save_through_pipeline, save_through_auto_classes, save_for_hub_again])
@pytest.mark.parametrize("kind", ["ecgmamba", "mse"])
def test_loaded_and_saved_it_is_the_same_folder(folders, tmp_path, kind, save):
    expected = answer(kind, folders / kind)
    once, twice = tmp_path / "once", tmp_path / "twice"
    save(kind, folders / kind, once)
    # nothing of the first folder is needed any more
    moved = tmp_path / "moved"
    shutil.move(once, moved)
    save(kind, moved, twice)
    assert {path.name for path in moved.iterdir()} == {path.name for path in twice.iterdir()}
    assert answer(kind, twice) == expected


def test_a_plain_peft_folder_is_read_by_command_and_pipeline(tmp_path, capsys):
    model = hf_mse_adapter.MseForConditionalGeneration.from_pretrained(PUBLISHED / "mse")
    model.config.backbone_name_or_path = str(PUBLISHED / "mse" / "language_model")
    processor = hf_mse_adapter.MseProcessor.from_pretrained(PUBLISHED / "mse")
    model.save_as_peft(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = model.predict(processor.collate([CLIP]), processor.answers)[0].value
    assert hf_mse_adapter.MultimodalSentimentPipeline  # its import makes the task known
    came = pipeline("multimodal-sentiment", model=str(tmp_path))(CLIP)
    assert came["value"] == pytest.approx(expected, abs=1e-6)
    assert main(["--model", str(tmp_path), "--text", CLIP["text"], "--json"]) == 0
    without = processor.collate([{"text": CLIP["text"]}])
    expected = model.predict(without, processor.answers)[0].value
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(expected, abs=1e-6)
