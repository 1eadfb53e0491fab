"""The folders under model_cards that hold a trained model: small, and as true as their cards say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor

ROOT = Path(__file__).resolve().parents[1]
VOICE = ROOT / "model_cards" / "mse-voice"


def test_mse_voice_is_small_and_says_how_it_hears():
    assert sum(file.stat().st_size for file in VOICE.iterdir()) < 8 * 2**20
    config = json.loads((VOICE / "config.json").read_text())
    assert config["backbone_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = (VOICE / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card and "no commercial use" in card
    processor = MseProcessor.from_pretrained(VOICE)
    assert processor.modalities == ["audio"] and processor.audio_dim == 192
    assert processor.front_ends == {"audio": {"type": "log_mel", "window": 12, "hop": 6}}
    model = json.loads((VOICE / "processor_config.json").read_text())
    assert "hf_mse_adapter" not in json.dumps(model.get("auto_map"))


@pytest.mark.slow
def test_mse_voice_hears_raw_wavs_as_their_stored_features(shared_data):
    places = [ROOT / "llms", ROOT.parent / "llms"]
    llm = next(
        (place / "SmolLM2-135M-Instruct" for place in places if (place / "SmolLM2-135M-Instruct").is_dir()), None
    )
    if llm is None:
        pytest.skip("SmolLM2 is not at hand: python training/get_llm.py --output_dir llms/SmolLM2-135M-Instruct")
    from hf_mse_adapter.audio_features import window_functionals

    torch.manual_seed(0)
    pipe = MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(VOICE, backbone=AutoModelForCausalLM.from_pretrained(llm)),
        processor=MseProcessor.from_pretrained(VOICE),
        device="cpu",
    )
    folder = shared_data / "msa" / "ravdess"
    stored = pd.read_parquet(folder / "test.parquet").set_index("id")
    for path in sorted((folder / "wav").glob("*.wav")):
        answer = pipe(str(path))
        given = pipe({"text": "", "audio": window_functionals(np.stack(stored.loc[path.stem].audio), 12, 6)})
        assert answer["probabilities"] == given["probabilities"]
    samples = [{"text": "", "audio": window_functionals(np.stack(steps), 12, 6)} for steps in stored.audio]
    right = [
        answer["label"] == label for answer, label in zip(pipe(samples, batch_size=16), stored.label, strict=True)
    ]
    assert sum(right) == pytest.approx(57, abs=2)  # of 134, as the card says
