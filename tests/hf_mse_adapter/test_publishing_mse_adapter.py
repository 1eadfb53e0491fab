import json
import re

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_mse_adapter import (
    MseAdapterConfig,
    MseForConditionalGeneration,
    MseProcessor,
    MultimodalSentimentPipeline,
    save_for_hub,
)

from .tiny_backbones import build_backbone, build_tokenizer


def build(backbone=None, **fields):
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, **fields)
    model = MseForConditionalGeneration.from_backbone(backbone or build_backbone(), config)
    return model, MseProcessor.from_config(model.config, build_tokenizer())


def test_what_a_published_folder_holds(tmp_path):
    build_backbone().save_pretrained(tmp_path / "llm")
    model, processor = build(AutoModelForCausalLM.from_pretrained(tmp_path / "llm"))
    folder = tmp_path / "published"
    (folder / "checkpoint-7").mkdir(parents=True)
    for _ in range(2):  # the second time, over the first
        assert save_for_hub(model, processor, folder, card={"summary": "Reads films."}) == folder
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "adapted_language_model.py",
        "answers.py",
        "audio_features.py",
        "backbone_likeness.py",
        "backbone_source.py",
        "backbone_trial.py",
        "checkpoint-7",
        "checksums.json",
        "checksums.py",
        "clip_decoding.py",
        "clip_features.py",
        "config.json",
        "configuration_mse_adapter.py",
        "example.json",
        "example_output.json",
        "face_features.py",
        "handler.py",
        "lower_layers.py",
        "model.safetensors",
        "modeling_mse_adapter.py",
        "pipeline_code.py",
        "pipeline_multimodal_sentiment.py",
        "processing_mse_adapter.py",
        "processor_config.json",
        "requirements.txt",
        "sharded_weights.py",
        "speech_recognition.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "transcripts.py",
    }
    assert all(name.startswith("adapter.") for name in load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone_name_or_path"] == str(tmp_path / "llm")
    assert config["auto_map"]["AutoModel"] == "modeling_mse_adapter.MseForConditionalGeneration"
    card = (folder / "README.md").read_text()
    assert "on LlamaForCausalLM: a plug-in" in card and "fetched from its own repository" in card
    model.config.backbone_name_or_path = "someone/llm"
    card = (save_for_hub(model, processor, folder) / "README.md").read_text()
    assert "[someone/llm](https://huggingface.co/someone/llm)" in card and "base_model: someone/llm" in card
    card = (save_for_hub(model, processor, folder, include_backbone=True) / "README.md").read_text()
    assert "lies in `language_model`" in card
    card = (save_for_hub(model, processor, folder, card={"summary": "Reads films."}) / "README.md").read_text()
    assert "Reads films." in card and f"{sum(p.numel() for p in model.adapter.parameters()):,}" in card


@pytest.mark.parametrize(
    "fields, answer",
    [
        ({}, '# {"value": ..., "spread": ...}'),
        ({"head": "alone"}, '# {"value": ...}'),
        ({"task": "classification", "id2label": {0: "sad", 1: "glad"}}, '# {"label": ..., "score": ...,'),
    ],
)
def test_the_card_shows_what_this_model_answers(tmp_path, fields, answer):
    model, processor = build(**fields)
    card = (save_for_hub(model, processor, tmp_path / "model") / "README.md").read_text()
    assert f"print(pipe(clip))\n{answer}" in card
    shown = next(line for line in card.splitlines() if line.startswith('# {"'))
    clip = {"text": "I love it", "audio": [[0.1] * 5], "vision": [[0.2] * 4]}
    came = MultimodalSentimentPipeline(model, processor=processor)(clip)
    assert list(came) == re.findall(r'"(\w+)":', shown)


def test_an_llm_without_a_name_travels_along(tmp_path):
    model, processor = build()
    save_for_hub(model, processor, tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    loaded = MseForConditionalGeneration.from_pretrained(moved)
    # and saved from there it still travels
    save_for_hub(loaded, processor, moved.with_name("again"))
    assert MseForConditionalGeneration.from_pretrained(moved.with_name("again")).language_model is not None


def test_publishes_from_an_installed_wheel(run_installed, tmp_path):
    """Nothing of the clone is there: the wheel brings the card's template and the endpoint's files."""
    folder = save_for_hub(*build(), tmp_path / "here", card={"summary": "Reads films."})
    code = f"""
from hf_mse_adapter import MseForConditionalGeneration, MseProcessor, save_for_hub
parts = [one.from_pretrained({str(folder)!r}) for one in (MseForConditionalGeneration, MseProcessor)]
save_for_hub(*parts, "here_too", card={{"summary": "Reads films."}})
"""
    run_installed(code, tmp_path)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {path.relative_to(tmp_path / "here_too") for path in (tmp_path / "here_too").rglob("*")} == names
    assert {"README.md", "handler.py", "requirements.txt"} <= set(map(str, names))
    for name in ("handler.py", "requirements.txt", "processing_mse_adapter.py"):
        assert (tmp_path / "here_too" / name).read_bytes() == (folder / name).read_bytes()
    card = (tmp_path / "here_too" / "README.md").read_text()
    assert card == (folder / "README.md").read_text().replace("# here", "# here_too")


def test_what_cannot_be_published_is_refused(tmp_path):
    model, processor = build()
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        save_for_hub(model.language_model, processor, tmp_path)
    other, _ = build(num_pseudo_tokens=2)
    with pytest.raises(ValueError, match="num_pseudo_tokens"):
        save_for_hub(other, processor, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field, value", [("label_range", (-1.0, 1.0)), ("label_step", 0.5), ("language", "zh")])
def test_a_processor_that_answers_otherwise_is_refused(tmp_path, field, value):
    model, _ = build()
    processor = MseProcessor.from_config(model.config, build_tokenizer(), **{field: value})
    with pytest.raises(ValueError, match=f"processor.{field} is"):
        save_for_hub(model, processor, tmp_path)


def test_the_card_names_opensmiles_licence_where_features_need_it(tmp_path):
    config = MseAdapterConfig(audio_dim=25, vision_dim=4)
    model = MseForConditionalGeneration.from_backbone(build_backbone(), config)
    for kind, named in (("egemaps", True), (None, False)):
        front_ends = {"audio": {"type": kind}} if kind else None
        processor = MseProcessor.from_config(model.config, build_tokenizer(), front_ends=front_ends)
        card = (save_for_hub(model, processor, tmp_path / str(kind)) / "README.md").read_text()
        assert ("openSMILE (non-commercial licence of audEERING): no commercial use" in card) == named
