"""From a recording to tensors."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from hf_ecgmamba.feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from hf_ecgmamba.recording import STANDARD_LEADS


@pytest.fixture(scope="session")
def ecg(shared_data):
    return shared_data / "ecg"


def noise(*shape):
    return np.random.default_rng(0).normal(scale=0.3, size=shape).astype(np.float32)


def test_windows_equal_those_of_the_whole(ecg):
    extractor = EcgMambaFeatureExtractor(
        leads=("II",), bandpass=(0.5, 40), remove_baseline=True, normalization="none", window_seconds=10.0
    )
    path = ecg / "mitbih_long" / "100"
    whole = extractor(path)["input_values"][0]
    windows = extractor.windows(path)
    ends = []
    for window in windows:
        start = round(window.start * 100)
        np.testing.assert_allclose(window.input_values, whole[:, start : start + 1000], atol=1e-4)
        ends.append(window.end)
    assert len(ends) == len(windows) and ends[-1] == pytest.approx(windows.recording.duration)


def test_batch_of_arrays_equals_one_by_one():
    batch = noise(3, 12, 5000)
    extractor = EcgMambaFeatureExtractor(bandpass=(0.5, 40), remove_baseline=True, normalization="per_record")
    together = extractor(batch, sampling_rate=500, return_tensors="pt")
    assert together["input_values"].shape == (3, 12, 1000) and together["attention_mask"].dtype == torch.int64
    for k, record in enumerate(batch):
        alone = extractor({"array": record, "sampling_rate": 500, "leads": STANDARD_LEADS})["input_values"][0]
        np.testing.assert_allclose(together["input_values"][k], alone, atol=1e-6)


def test_save_and_load(tmp_path):
    extractor = EcgMambaFeatureExtractor(optional_leads=("V1",), bandpass=(0.5, 40), normalization="per_lead")
    extractor.save_pretrained(tmp_path)
    assert EcgMambaFeatureExtractor.from_pretrained(tmp_path).to_dict() == extractor.to_dict()
    assert AutoFeatureExtractor is not None
