"""Audio features: the same from a stored file and from the sound, whole and in pieces."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import resample_poly
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from hf_mse_adapter.audio_features import (
    LogMel,
    Loudness,
    Resampler,
    StoredSound,
    load_audio_encoder,
    window_functionals,
)
from hf_mse_adapter.clip_decoding import Sound
from hf_mse_adapter.clip_features import ClipReader
from tests.hf_mse_adapter.odd_clips import samples_of, voice


def log_mel(samples, pieces=(), start=0.0):
    loudness = Loudness()
    features = LogMel(loudness)
    for part in np.split(samples.astype(np.float32), pieces):
        for each in (loudness, features):
            each.add(Sound(start, part, 16000))
    return features.finish()


def test_wavs_give_the_stored_features(shared_data):
    """All 24 RAVDESS clips at hand, number for number."""
    folder = shared_data / "msa" / "ravdess"
    stored = pd.read_parquet(folder / "test.parquet").set_index("id")
    reader = ClipReader({"audio": {"type": "log_mel"}})
    paths = sorted((folder / "wav").glob("*.wav"))
    assert len(paths) == 24
    for path in paths:
        values = reader.read(path, wanted=["audio"]).audio.values
        np.testing.assert_array_equal(values, np.stack(stored.loc[path.stem].audio), err_msg=path.stem)


def test_log_mel_equals_transformers_spectrogram():
    samples = voice(2.0)
    filters = mel_filter_bank(257, 64, 50.0, 7600.0, 16000, norm=None, mel_scale="htk")
    power = spectrogram(
        samples[:29760], window_function(400, "hann", periodic=False), 400, 160, fft_length=512, power=2.0,
        center=False, mel_filters=filters, log_mel=None, mel_floor=0.0,
    ).T  # fmt: skip
    found = log_mel(samples)
    first = round(found.start * 100)
    assert len(found.values) > 40
    count = min(len(found.values), (len(power) - first) // 4)
    expected = np.log(power[first : first + 4 * count] + 1e-8).reshape(count, 4, 64).mean(axis=1)
    np.testing.assert_allclose(found.values[:count], expected, rtol=1e-3, atol=1e-3)
    assert 0.05 < found.start < 0.15  # the voice begins after a tenth of a second


def test_pieces_of_any_length_give_the_same():
    samples = voice(1.5)
    whole = log_mel(samples)
    for cuts in ([1], [160, 161, 400, 9999], list(range(37, len(samples), 500))):
        parts = log_mel(samples, cuts)
        np.testing.assert_array_equal(parts.values, whole.values)
        assert parts.start == whole.start


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 12345])
def test_resampling_in_pieces_equals_scipy(rate):
    generator = np.random.default_rng(0)
    samples, resampler, parts, at = generator.normal(size=rate + 137).astype(np.float32), Resampler(rate), [], 0
    while at < len(samples):
        step = int(generator.integers(1, rate))
        parts.append(resampler.add(samples[at : at + step]))
        at += step
    found = np.concatenate([*parts, resampler.rest()])
    common = np.gcd(rate, 16000)
    expected = resample_poly(samples, 16000 // common, rate // common)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_silence_and_too_little_are_said():
    assert log_mel(np.zeros(16000)).missing == "the sound is silent"
    assert log_mel(1e-6 * np.random.default_rng(0).normal(size=16000)).missing == "the sound is silent"
    assert "too short" in log_mel(voice()[7000:7700]).missing
    assert log_mel(np.zeros(0)).missing == "there is no sound"


def test_stored_sound_gives_back_what_came():
    stored, samples = StoredSound(), voice()
    for part in np.split(samples, [5, 1000]):
        stored.add(Sound(0.5, part, 16000))
    np.testing.assert_array_equal(stored.read(0, len(samples)), samples)
    np.testing.assert_array_equal(stored.read(900, 1100), samples[900:1100])
    assert stored.start == 0.5
    stored.close()


def test_windows_of_a_front_end_are_those_of_training():
    sound = {"waveform": voice(2.0), "sampling_rate": 16000}
    plain = ClipReader({"audio": {"type": "log_mel"}}).read(wanted=["audio"], **sound).audio
    windowed = ClipReader({"audio": {"type": "log_mel", "window": 12}}).read(wanted=["audio"], **sound).audio
    np.testing.assert_array_equal(windowed.values, window_functionals(plain.values, 12, 6))
    assert windowed.step == pytest.approx(6 * plain.step)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of a tiny random Whisper and a tiny random WavLM."""
    from transformers import (
        Wav2Vec2FeatureExtractor,
        WavLMConfig,
        WavLMModel,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    folder = tmp_path_factory.mktemp("encoders")
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    WhisperModel(WhisperConfig(d_model=16, vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                               decoder_start_token_id=1, **sizes)).save_pretrained(folder / "whisper")  # fmt: skip
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    WavLMModel(
        WavLMConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                    conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    ).save_pretrained(folder / "wavlm")  # fmt: skip
    Wav2Vec2FeatureExtractor().save_pretrained(folder / "wavlm")
    return folder


@pytest.mark.parametrize("name", ["whisper", "wavlm"])
def test_an_audio_encoder_gives_a_step_in_40_ms(name, encoders):
    front_end = {"type": "encoder", "model": str(encoders / name), "layer": 1}
    reader = ClipReader({"audio": front_end})
    sound = voice(2.0)
    values = reader.read(wanted=["audio"], waveform=sound, sampling_rate=16000).audio.values
    assert values.shape == (50, 16) and np.isfinite(values).all()
    last = load_audio_encoder(str(encoders / name), -1)(sound)
    assert last.shape == (50, 16) and not np.allclose(last, values)


def test_egemaps_by_opensmile():
    pytest.importorskip("opensmile", reason="opensmile, an extra, is not installed")
    sound = {"waveform": voice(2.0), "sampling_rate": 16000}
    features = ClipReader({"audio": {"type": "egemaps"}}).read(wanted=["audio"], **sound).audio
    assert features.values.shape[1] == 25 and 40 < len(features.values) <= 50
    short = {"waveform": voice()[7000:7800], "sampling_rate": 16000}
    missing = ClipReader({"audio": {"type": "egemaps"}}).read(wanted=["audio"], **short).made_from["missing"]
    assert "too short, 50 ms" in missing["audio"]


def test_egemaps_of_minutes_keep_time(shared_data):
    """Heard minute by minute they are openSMILE's own of the whole, but for a pitch here and there."""
    opensmile = pytest.importorskip("opensmile", reason="opensmile, an extra, is not installed")
    paths = sorted((shared_data / "msa" / "ravdess" / "wav").glob("*.wav"))
    sound = np.concatenate([resample_poly(samples_of(path), 1, 3) for path in paths[:20]])
    sound = sound[: 65 * 16000].astype(np.float32)
    found = (
        ClipReader({"audio": {"type": "egemaps"}}).read(wanted=["audio"], waveform=sound, sampling_rate=16000).audio
    )
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    frames = smile.process_signal(sound, 16000).to_numpy(np.float32)
    expected = frames[: len(frames) // 4 * 4].reshape(-1, 4, 25).mean(axis=1)
    assert len(expected) > 1600 and found.values.shape == expected.shape
    same = np.isclose(found.values, expected, rtol=1e-3, atol=1e-3).all(axis=1)
    assert same.mean() > 0.98 and same[-100:].all()


def test_egemaps_says_what_it_wants(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(ImportError, match=r"pip install opensmile .*no commercial use"):
        ClipReader({"audio": {"type": "egemaps"}}).read(wanted=["audio"], waveform=voice(), sampling_rate=16000)
