"""An adapter takes the LLM it was trained for, or a near copy with a note; another one is refused in a line."""

import json

import pytest
import torch

from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor, save_for_hub
from hf_mse_adapter.__main__ import main
from hf_mse_adapter.backbone_likeness import likeness_of, require_likeness
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_batch, build_tokenizer


@pytest.fixture
def llm_folder(tmp_path):
    folder = tmp_path / "llm"
    build_backbone().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def published(tmp_path, llm_folder):
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, base_model_name_or_path="someone/an-llm")
    model = MseForConditionalGeneration.from_backbone(build_backbone(), config)
    processor = MseProcessor.from_config(config, build_tokenizer())
    return save_for_hub(model, processor, tmp_path / "adapter")


def with_noise(llm, size):
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter += size * parameter.std() * torch.randn_like(parameter) if parameter.ndim == 2 else 0
    return llm


def test_the_same_llm_a_near_copy_and_others(caplog):
    recorded = json.loads(json.dumps(likeness_of(build_backbone())))
    assert require_likeness(build_backbone(), recorded) > 0.99999
    assert not caplog.records
    assert require_likeness(build_backbone().to(torch.bfloat16), recorded) > 0.9999
    assert not caplog.records
    cosine = require_likeness(with_noise(build_backbone(), 0.08), recorded)
    assert 0.98 < cosine < 0.9999 and "near copy" in caplog.text
    with pytest.raises(ValueError, match="not the one that this adapter was trained for: the cosine"):
        require_likeness(build_backbone(seed=1), recorded)
    with pytest.raises(ValueError, match="num_hidden_layers is 3; expected 2"):
        require_likeness(build_backbone(num_hidden_layers=3), recorded)
    with pytest.raises(ValueError, match="vocab_size is 401; expected 400"):
        require_likeness(build_backbone(vocab_size=401), recorded)
    tokenizers = build_tokenizer(), build_tokenizer(["other words make other pieces"] * 9)
    with pytest.raises(ValueError, match="its tokenizer writes"):
        require_likeness(build_backbone(), recorded, tokenizers)
    require_likeness(build_backbone(seed=1), recorded, ignore_mismatched_backbone=True)
    assert "not the one" in caplog.text


def test_a_copy_of_ones_own_by_folder(published, llm_folder, tmp_path):
    model = MseForConditionalGeneration.from_pretrained(published, backbone=llm_folder)
    in_memory = MseForConditionalGeneration.from_pretrained(published, backbone=build_backbone())
    batch = build_batch()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, in_memory(**batch).loss)
    other = tmp_path / "other"
    build_backbone(seed=1).save_pretrained(other)
    with pytest.raises(ValueError, match="not the one that this adapter was trained for"):
        MseForConditionalGeneration.from_pretrained(published, backbone=other)
    MseForConditionalGeneration.from_pretrained(published, backbone=other, ignore_mismatched_backbone=True)


@pytest.mark.slow
def test_the_command_and_the_pipeline_take_it_too(published, llm_folder, capsys):
    from transformers import pipeline

    assert main(["--model", str(published), "--backbone", str(llm_folder), "--text", "no", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    pipe = pipeline(
        "multimodal-sentiment",
        model=str(published),
        trust_remote_code=True,
        model_kwargs={"backbone": str(llm_folder)},
    )
    assert pipe({"text": "no"})["value"] == pytest.approx(value, abs=1e-4)
    assert main(["--model", str(published), "--text", "no"]) == 2
    assert "--backbone FOLDER" in capsys.readouterr().err
