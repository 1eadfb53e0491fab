"""From sound to words: what a processor's config names under "text".

A recognizer of transformers hears only where somebody speaks: given silence, Whisper makes words up, and takes longer
about it than for speech. It writes greedily, the likeliest word at a time, so that a clip has one transcript.
"""

import threading

import numpy as np
import torch

from .audio_features import RATE

# speech by loudness: 20 ms above 3 % of the loudest, above -60 dB and above three times the quiet tenth (steady noise
# is no speech), gaps of half a second bridged, a fifth of a second kept around
SPEECH_RATIO, SPEECH_FLOOR, NOISE_RATIO = 0.03, 1e-3, 3.0
BRIDGED, KEPT_AROUND, SHORTEST = 0.5, 0.2, 0.1
LONGEST = 28.0  # seconds that are heard at once: Whisper's window is 30


def speech_spans(loudness):
    """
    Where somebody may be speaking, by loudness.

    Args:
        loudness ([`~audio_features.Loudness`])

    Returns:
        `list[tuple[float, float]]`: begin and end, in seconds of the clip.
    """
    values = loudness.values
    if not len(values):
        return []
    noise = NOISE_RATIO * np.quantile(values, 0.1)
    if values.max() < noise:
        return []
    # of speech without a pause the quiet tenth is speech, too
    is_loud = values > max(SPEECH_FLOOR, values.max() * SPEECH_RATIO, min(noise, values.max() / 4))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_loud.astype(int), [0]])))
    spans = [(first * loudness.step, last * loudness.step) for first, last in edges.reshape(-1, 2)]
    return _padded(spans, len(values) * loudness.step, loudness.start)


def silero_spans(stored):
    """Where somebody is speaking, by Silero's network (`pip install silero-vad`, MIT), as [`speech_spans`]."""
    try:
        from silero_vad import load_silero_vad
    except ImportError:
        raise ImportError(
            "gate is 'silero', but silero-vad is not installed: pip install silero-vad, or take the gate 'loudness'"
        ) from None
    model = load_silero_vad()
    spans = []
    with torch.inference_mode():
        for first in range(0, stored.num_samples, 512):
            samples = stored.read(first, min(first + 512, stored.num_samples))
            samples = np.pad(samples, (0, 512 - len(samples)))
            if float(model(torch.from_numpy(samples), RATE)) > 0.5:
                spans.append((first / RATE, (first + 512) / RATE))
    return _padded(spans, stored.num_samples / RATE, stored.start)


def _padded(spans, length, start):
    joined = []
    for first, last in spans:
        if joined and first - joined[-1][1] < BRIDGED:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    joined = [(first, last) for first, last in joined if last - first >= SHORTEST]
    return [
        (float(start + max(0.0, first - KEPT_AROUND)), float(start + min(length, last + KEPT_AROUND)))
        for first, last in joined
    ]


class SpeechRecognizer:
    """
    Any speech recognizer of transformers, sequence to sequence (Whisper) or CTC (wav2vec 2.0, HuBERT).

    It is loaded when it is first needed, and then kept; any number of threads may ask at once.

    Args:
        name (`str`): id or folder.
        language (`str`, *optional*): of what is said, for a recognizer of many languages.
        options: as `from_pretrained` takes them (revision, token, ...).
    """

    def __init__(self, name, language=None, **options):
        self.name, self.language, self.options = name, language, options
        self._lock, self._loaded = threading.Lock(), None

    def transcribe(self, stored, spans):
        """
        The words of a clip.

        Args:
            stored ([`~audio_features.StoredSound`]).
            spans (`list[tuple[float, float]]`): where somebody speaks, in seconds of the clip.

        Returns:
            `str`: empty where nobody speaks.
        """
        texts = []
        for begin, end in spans:
            first, last = (round((time - stored.start) * RATE) for time in (begin, end))
            # a long one is cut into equal parts
            parts = np.linspace(first, last, 1 + int(np.ceil((last - first) / RATE / LONGEST)))
            for first_part, last_part in zip(parts[:-1].astype(int), parts[1:].astype(int), strict=True):
                texts.append(self._recognized(stored.read(first_part, min(last_part, stored.num_samples))))
        return " ".join(text for text in texts if text)

    @torch.inference_mode()
    def _recognized(self, samples):
        processor, model = self._load()
        inputs = processor(samples, sampling_rate=RATE, return_tensors="pt")
        if not model.can_generate():
            logits = model(**inputs).logits
            return processor.batch_decode(logits.argmax(dim=-1))[0].strip()
        settings = {}
        if getattr(model.generation_config, "is_multilingual", False):
            settings = {"task": "transcribe", "language": self.language}
        tokens = model.generate(**inputs, num_beams=1, do_sample=False, **settings)
        return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def _load(self):
        with self._lock:
            if self._loaded is None:
                from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

                try:
                    config = AutoConfig.from_pretrained(self.name, **self.options)
                    kind = AutoModelForSpeechSeq2Seq if config.is_encoder_decoder else AutoModelForCTC
                    model = kind.from_pretrained(self.name, dtype=torch.float32, **self.options).eval()
                    self._loaded = AutoProcessor.from_pretrained(self.name, **self.options), model
                except (OSError, ValueError) as error:
                    raise OSError(
                        f"words are recognized by {self.name}, which cannot be loaded: give the text, or a folder of "
                        f"a recognizer (speech_recognizer=, --speech-recognizer): {error}"
                    ) from None
            return self._loaded
