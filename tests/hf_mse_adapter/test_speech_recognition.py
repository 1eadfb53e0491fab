"""Where somebody speaks: what decides whether a recognizer is asked at all."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from hf_mse_adapter.audio_features import Loudness, StoredSound
from hf_mse_adapter.clip_decoding import Sound
from hf_mse_adapter.clip_features import ClipReader
from hf_mse_adapter.speech_recognition import silero_spans, speech_spans
from tests.hf_mse_adapter.odd_clips import samples_of, voice


def heard(samples, start=0.0):
    loudness, stored = Loudness(), StoredSound()
    for part in (loudness, stored):
        part.add(Sound(start, samples.astype(np.float32), 16000))
    return loudness, stored


def spoken(shared_data, number=0):
    """A sentence of RAVDESS at 16 kHz, after two seconds of silence and before two."""
    path = sorted((shared_data / "msa" / "ravdess" / "wav").glob("*.wav"))[number]
    samples = resample_poly(samples_of(path), 1, 3)
    return np.concatenate([np.zeros(32000), samples, np.zeros(32000)]), len(samples) / 16000


def test_silence_noise_and_nothing_are_not_speech():
    noise = 0.1 * np.random.default_rng(0).normal(size=48000)
    for samples in (np.zeros(48000), noise, np.zeros(0)):
        assert speech_spans(heard(samples)[0]) == []


@pytest.mark.parametrize("number", [0, 7, 23])
def test_both_gates_find_the_sentence_on_the_clips_own_timeline(number, shared_data):
    pytest.importorskip("silero_vad", reason="silero-vad, an extra, is not installed")
    samples, seconds = spoken(shared_data, number)
    loudness, stored = heard(samples, start=5.0)
    found = {"loudness": speech_spans(loudness), "silero": silero_spans(stored)}
    for spans in found.values():
        first, last = spans[0][0], spans[-1][1]
        assert 7.0 <= first < last <= 7.0 + seconds + 0.2
        assert last - first > 0.4 * seconds
    assert abs(found["loudness"][0][0] - found["silero"][0][0]) < 0.3


def test_sound_that_is_no_speech_passes_loudness_and_not_silero():
    pytest.importorskip("silero_vad", reason="silero-vad, an extra, is not installed")
    claps = 0.5 * np.random.default_rng(0).normal(size=48000) * np.exp(-30 * (np.arange(48000) / 16000 % 0.5))
    sound = {"waveform": claps.astype(np.float32), "sampling_rate": 16000, "wanted": ["text"]}
    front_end = {"type": "speech_recognition", "model": "/nowhere"}
    with pytest.raises(OSError, match="words are recognized by /nowhere"):
        ClipReader({"text": front_end}).read(**sound)
    read = ClipReader({"text": front_end | {"gate": "silero"}}).read(**sound)
    assert read.text == "" and read.made_from["missing"]["text"] == "nobody speaks"


def test_silero_says_what_it_wants(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "silero_vad", None)
    with pytest.raises(ImportError, match="pip install silero-vad, or take the gate 'loudness'"):
        silero_spans(heard(voice())[1])
