"""From a clip to what a model reads: words, audio and vision features, made as the processor's config says.

The config (`front_ends`) is saved with the processor, so that a model and its features belong together:

    {
        "text": {"type": "speech_recognition", "model": "openai/whisper-tiny.en", "gate": "loudness"},
        "audio": {"type": "log_mel"},            # or "egemaps", or "encoder" with "model" and "layer"
        "vision": {"type": "face_geometry", "frame_rate": 10.0, "face": "largest"},  # or "encoder", likewise
    }

"audio" may also have "window" and "hop": the steps of `audio_features.window_functionals`. A modality that is not
named cannot be made from a clip.
"""

import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from .audio_features import (
    NUM_MELS,
    RATE,
    AudioEncoding,
    Egemaps,
    FeatureSequence,
    LogMel,
    Loudness,
    Resampler,
    StoredSound,
    load_audio_encoder,
    window_functionals,
)
from .clip_decoding import Clip, Sound, pieces_of_arrays
from .face_features import FaceGeometry, FaceNetworks, ImageEncoding, load_image_encoder, own_weights
from .speech_recognition import SpeechRecognizer, silero_spans, speech_spans

SPEECH_RECOGNIZER = "openai/whisper-tiny.en"
FRAME_RATE = 10.0
WINDOWS = {"window": 0, "hop": 0}
# by modality and type: the fields that it takes, and their defaults (None: it has to be given)
TYPES = {
    "text": {"speech_recognition": {"model": SPEECH_RECOGNIZER, "revision": None, "gate": "loudness"}},
    "audio": {
        "log_mel": WINDOWS,
        "egemaps": WINDOWS,
        "encoder": {"model": None, "revision": None, "layer": -1, **WINDOWS},
    },
    "vision": {
        "face_geometry": {"frame_rate": FRAME_RATE, "face": "largest"},
        "encoder": {"model": None, "revision": None, "layer": -1, "frame_rate": FRAME_RATE, "face": "largest"},
    },
}
CHOICES = {"gate": ("loudness", "silero"), "face": ("largest", "speaking")}
DEFAULT_FRONT_ENDS = {
    "text": {"type": "speech_recognition"},
    "audio": {"type": "log_mel"},
    "vision": {"type": "face_geometry"},
}


def checked_front_ends(front_ends):
    """
    The config with all defaults written out.

    Raises:
        ValueError: naming the field, what came and what is expected.
    """
    if front_ends is None:
        return None
    if not isinstance(front_ends, dict) or (unknown := set(front_ends) - set(TYPES)):
        came = sorted(unknown) if isinstance(front_ends, dict) else front_ends
        raise ValueError(f"front_ends must hold text, audio and vision, but has {came!r}")
    complete = {}
    for modality in sorted(front_ends):
        given = front_ends[modality]
        if given is None:
            continue
        types = TYPES[modality]
        if not isinstance(given, dict) or given.get("type") not in types:
            raise ValueError(f"front_ends: {modality} is {given!r}; expected a type of {', '.join(types)}")
        defaults = types[given["type"]]
        if unknown := set(given) - set(defaults) - {"type"}:
            raise ValueError(
                f"front_ends: {modality} has {sorted(unknown)}; a {given['type']} takes {', '.join(defaults)}"
            )
        fields = {"type": given["type"], **defaults, **given}
        for name, value in fields.items():
            if name in CHOICES and value not in CHOICES[name]:
                raise ValueError(f"front_ends: {name} of {modality} is {value!r}; expected one of {CHOICES[name]}")
            if name == "model" and (not isinstance(value, str) or not value):
                raise ValueError(f"front_ends: model of {modality} is {value!r}; expected an id or a folder")
            if name == "frame_rate" and not (_is_number(value) and 0 < value <= 100):
                raise ValueError(f"front_ends: frame_rate is {value!r}; expected a number above 0, at most 100")
            if name in ("window", "hop", "layer") and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"front_ends: {name} of {modality} is {value!r}; expected a whole number")
        if fields.get("window", 0) < 0 or fields.get("hop", 0) < 0:
            raise ValueError(f"front_ends: window and hop of {modality} must not be negative, but are in {given!r}")
        if fields.get("window"):
            fields["hop"] = fields["hop"] or max(1, fields["window"] // 2)
        complete[modality] = fields
    return complete or None


def parse_front_end(modality, text):
    """
    A front end as a command line writes it: `TYPE`, `encoder:MODEL[:LAYER]`, or for text the recognizer's id.

    Returns:
        `dict`, as in `front_ends`.
    """
    if modality == "text":
        return {"type": "speech_recognition", "model": text}
    kind, _, rest = text.partition(":")
    if not rest:
        return {"type": kind}
    model, _, layer = rest.rpartition(":")
    if model and layer.lstrip("-").isdigit():
        return {"type": kind, "model": model, "layer": int(layer)}
    return {"type": kind, "model": rest}


def feature_width(front_end):
    """Features of one step (`int`), or None where the encoder decides."""
    widths = {"log_mel": NUM_MELS, "egemaps": 25, "face_geometry": len(FaceGeometry.names)}
    width = widths.get(front_end["type"])
    return 3 * width if width and front_end.get("window") else width


@dataclass(frozen=True)
class ClipFeatures:
    """
    What was read of a clip.

    Attributes:
        text (`str`): what was said; empty where nothing was, or where words were not asked for.
        audio, vision ([`FeatureSequence`] or None): None where it was not asked for.
        made_from (`dict`): seconds, speech_seconds, frames, frames_with_face, face, transcript as far as known, and
            missing: {modality: why}.
    """

    text: str = ""
    audio: FeatureSequence | None = None
    vision: FeatureSequence | None = None
    made_from: dict = field(default_factory=dict)


class ClipReader:
    """
    Reads clips; any number of threads may use one.

    Args:
        front_ends (`dict`): see above.
        face_weights (`str` or `Path`, *optional*): the face networks' file; by default the one beside this code.
        speech_recognizer (`str`, *optional*): id or folder of another recognizer than the config names, such as a copy
            of it on this machine.
        language (`str`, *optional*): of what is said.
    """

    def __init__(self, front_ends, face_weights=None, speech_recognizer=None, language=None):
        self.front_ends = checked_front_ends(front_ends) or {}
        self.face_weights = face_weights
        self._lock, self._models = threading.Lock(), {}
        words = self.front_ends.get("text", {})
        self.recognizer = SpeechRecognizer(
            speech_recognizer or words.get("model", SPEECH_RECOGNIZER),
            language,
            **({} if speech_recognizer or not words.get("revision") else {"revision": words["revision"]}),
        )

    def read(self, source=None, wanted=("text", "audio", "vision"), start=0.0, end=None, **arrays):
        """
        Read a clip, once.

        Args:
            source: a clip as [`~clip_decoding.Clip`] takes it, or None with
            arrays: waveform, sampling_rate, frames, frame_rate, see [`~clip_decoding.pieces_of_arrays`].
            wanted (`Iterable[str]`): of text, audio and vision, what is asked for.
            start, end (`float`, *optional*): which seconds.

        Returns:
            [`ClipFeatures`]

        Raises:
            OSError, ValueError: naming the clip, what is wrong and where.
            ImportError: a library is missing that this clip needs.
        """
        wanted = [modality for modality in TYPES if modality in set(wanted)]
        if unmade := [modality for modality in wanted if modality != "text" and modality not in self.front_ends]:
            raise ValueError(f"front_ends has no {' and no '.join(unmade)}, so no clip can give it")
        hears = "text" in wanted or "audio" in wanted or self.front_ends.get("vision", {}).get("face") == "speaking"
        rate = self.front_ends["vision"]["frame_rate"] if "vision" in wanted else None
        with ExitStack() as stack:
            if source is not None:
                clip = stack.enter_context(Clip(source))
                pieces = clip.pieces(audio=hears, frame_rate=rate, start=start, end=end)
            else:
                clip, pieces = None, pieces_of_arrays(**arrays, grid_rate=rate)
            reading = _Reading(self, wanted, stack)
            for piece in pieces:
                reading.add(piece)
            return reading.finish(clip)

    def model(self, modality):
        """The face networks, or an encoder: loaded when first needed, then kept."""
        with self._lock:
            if modality not in self._models:
                front_end = self.front_ends.get(modality, {})
                if modality == "face":
                    self._models[modality] = FaceNetworks.from_file(self.face_weights or own_weights())
                else:
                    load = load_audio_encoder if modality == "audio" else load_image_encoder
                    options = {"revision": front_end["revision"]} if front_end["revision"] else {}
                    self._models[modality] = load(front_end["model"], front_end["layer"], **options)
            return self._models[modality]


class _Reading:
    """One clip on its way through the front ends."""

    def __init__(self, reader, wanted, stack):
        self.reader, self.wanted = reader, wanted
        self.loudness, self.stored, self.resampler = Loudness(), None, None
        self.seconds = self.sound_end = 0.0
        self.start = None
        audio = reader.front_ends.get("audio", {}) if "audio" in wanted else {}
        if "text" in wanted or audio.get("type") in ("egemaps", "encoder"):
            self.stored = StoredSound()
            stack.callback(self.stored.close)
        self.audio = None
        if audio.get("type") == "log_mel":
            self.audio = LogMel(self.loudness)
        elif audio.get("type") == "egemaps":
            self.audio = Egemaps(self.stored, self.loudness)
        elif audio:
            self.audio = AudioEncoding(reader.model("audio"), self.stored, self.loudness)
        self.vision = None
        if "vision" in wanted:
            front_end = reader.front_ends["vision"]
            options = {"frame_rate": front_end["frame_rate"], "face": front_end["face"]}
            if front_end["type"] == "face_geometry":
                self.vision = FaceGeometry(reader.model("face"), **options)
            else:
                self.vision = ImageEncoding(reader.model("face"), reader.model("vision"), **options)

    def add(self, piece):
        if not isinstance(piece, Sound):
            self.vision.add(piece)
            self.seconds = max(self.seconds, (piece.index + piece.count) / self.vision.frame_rate)
            return
        if self.resampler is None:
            self.resampler, self.start = Resampler(piece.sampling_rate), piece.start
        self.seconds = max(self.seconds, piece.start + len(piece.samples) / piece.sampling_rate)
        self._hear(self.resampler.add(piece.samples))

    def _hear(self, samples):
        if len(samples):
            sound = Sound(self.start, samples, RATE)
            for part in (self.loudness, self.audio, self.stored):
                if part is not None:
                    part.add(sound)

    def finish(self, clip):
        if self.resampler is not None:
            self._hear(self.resampler.rest())
        seconds = self.seconds if clip is None or not clip.seconds else clip.seconds
        made_from, missing = {"seconds": round(seconds, 3)}, {}
        spans = speech_spans(self.loudness) if self.resampler is not None else []
        text, audio, vision = "", None, None
        if "text" in self.wanted:
            if self.reader.front_ends.get("text", {}).get("gate") == "silero" and spans:
                spans = silero_spans(self.stored)
            if spans:
                text = self.reader.recognizer.transcribe(self.stored, spans)
            made_from["transcript"] = text
            if not text:
                missing["text"] = "no words are heard" if spans else self._no_speech()
        if self.audio is not None:
            audio = self._windowed(self.audio.finish())
            if audio.missing:
                missing["audio"] = audio.missing
        if self.resampler is not None:
            made_from["speech_seconds"] = round(sum(last - first for first, last in spans), 3)
        if self.vision is not None:
            loudness = None
            if self.resampler is not None:
                loudness = self.loudness.on_grid(self.vision.frame_rate, self.vision.tracker.num_places)
            vision, seen = self.vision.finish(loudness)
            made_from |= seen
            if vision.missing:
                missing["vision"] = vision.missing
        if missing:
            made_from["missing"] = missing
        return ClipFeatures(text, audio, vision, made_from)

    def _no_speech(self):
        return "there is no sound" if self.resampler is None else "nobody speaks"

    def _windowed(self, sequence):
        front_end = self.reader.front_ends["audio"]
        if sequence.values is None or not front_end["window"]:
            return sequence
        values = window_functionals(sequence.values, front_end["window"], front_end["hop"])
        return FeatureSequence(values, sequence.start, sequence.step * front_end["hop"])


def _is_number(value):
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
