"""From sound to audio features: what a processor's config names under "audio", computed piece by piece.

Each front end takes mono pieces at 16 kHz in order (`add`) and gives a sequence of one step in 40 ms (`finish`).
Silence, and what is too short for one step, gives none, and says why.
"""

import logging
import math
import tempfile
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

try:
    from scipy.signal import firwin, upfirdn
except ImportError:  # only clips need it
    firwin = upfirdn = None

logger = logging.getLogger(__name__)

RATE = 16000
STEP = 0.04  # seconds, of every front end
SILENCE = 1e-4  # -80 dB below full scale: what a recorder's own noise reaches

# log-mel: 25 ms frames every 10 ms, four to a step
FRAME, HOP, FFT = 400, 160, 512
NUM_MELS, LOWEST, HIGHEST = 64, 50.0, 7600.0
FLOOR = 1e-8
# edges are cut where 20 ms are quieter than 1 % of the loudest, but for a margin of two
QUIET_FRAME, QUIET_RATIO, QUIET_MARGIN = 320, 0.01, 2


@dataclass(frozen=True)
class FeatureSequence:
    """
    Attributes:
        values (`np.ndarray` float32 [time, features], or None where there is nothing).
        start (`float`): when its first step begins, in seconds of the clip.
        step (`float`): seconds from one step to the next.
        missing (`str`, *optional*): why there is nothing.
    """

    values: np.ndarray | None
    start: float = 0.0
    step: float = STEP
    missing: str | None = None


class Resampler:
    """
    Mono pieces at any rate to 16 kHz, each sample as `scipy.signal.resample_poly` makes it of the whole.

    Args:
        rate (`int`): of what comes in, Hz.
    """

    def __init__(self, rate):
        if upfirdn is None:
            raise ImportError("sound is resampled by SciPy, which is not installed: pip install scipy")
        self.up, self.down = RATE // math.gcd(rate, RATE), rate // math.gcd(rate, RATE)
        self._held = np.zeros(0, np.float32)
        self._held_from = 0  # index, in the whole, of the first sample that is held
        self._num_in = self._num_out = 0
        if self.up != self.down:
            self._filter, self._half = _low_pass(self.up, self.down)
            # input samples that an output sample leans on, on each side
            self._reach = -(-self._half // self.up) + 1

    def add(self, samples):
        """float32 [n] in, float32 [m] out: as much as is certain already."""
        if self.up == self.down:
            return samples
        self._held = np.concatenate([self._held, samples])
        self._num_in += len(samples)
        return self._until((self._num_in - self._reach) * self.up // self.down)

    def rest(self):
        """What comes out after the last piece."""
        if self.up == self.down:
            return np.zeros(0, np.float32)
        return self._until(-(-self._num_in * self.up // self.down))

    def _until(self, num_out):
        if num_out <= self._num_out:
            return np.zeros(0, np.float32)
        # from a sample on which an output sample lies, so that the filter meets it at the same phase
        first = max(0, (self._num_out * self.down // self.up - self._reach) // self.down * self.down)
        held = self._held[first - self._held_from :]
        self._held, self._held_from = held, first
        filtered = upfirdn(self._filter, held, self.up, self.down)
        begin = self._num_out - first * self.up // self.down
        count = num_out - self._num_out
        # the filter's centre lies `half` up-sampled places late, a whole number of output samples
        shift = self._half // self.down
        out = filtered[shift + begin : shift + begin + count]
        self._num_out = num_out
        return np.pad(out, (0, count - len(out))).astype(np.float32)


@lru_cache(maxsize=16)
def _low_pass(up, down):
    """The filter of `resample_poly` (Kaiser window, beta 5), delayed to a whole number of output samples."""
    half = 10 * max(up, down)
    taps = (firwin(2 * half + 1, 1.0 / max(up, down), window=("kaiser", 5.0)) * up).astype(np.float32)
    late = -half % down
    return np.concatenate([np.zeros(late, np.float32), taps]), half + late


class Loudness:
    """RMS of each 20 ms, for what has to know where there is sound."""

    step = QUIET_FRAME / RATE

    def __init__(self):
        self.start = 0.0
        self._waiting, self._parts, self._begun = np.zeros(0, np.float32), [], False

    def add(self, sound):
        """Take the next [`~clip_decoding.Sound`]."""
        if not self._begun:
            self.start, self._begun = sound.start, True
        held = np.concatenate([self._waiting, sound.samples])
        count = len(held) // QUIET_FRAME
        if count:
            blocks = held[: count * QUIET_FRAME].reshape(count, QUIET_FRAME).astype(np.float64)
            self._parts.append(np.sqrt((blocks**2).mean(axis=1)))
        self._waiting = held[count * QUIET_FRAME :]

    @property
    def values(self):
        """float64 [time], a value in 20 ms from `start` on; an unfinished one is left out."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0)

    def on_grid(self, rate, num_places):
        """The loudest at each place of a grid (float64 [places]); 0 where there is no sound."""
        loudest = np.zeros(num_places)
        places = ((self.start + self.step * np.arange(len(self.values))) * rate).astype(int)
        inside = places < num_places
        np.maximum.at(loudest, places[inside], self.values[inside])
        return loudest


class StoredSound:
    """The sound itself, in a temporary file, for what has to hear it twice; 64 kB a second."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.start, self.num_samples = 0.0, 0

    def add(self, sound):
        """Take the next [`~clip_decoding.Sound`]."""
        if not self.num_samples:
            self.start = sound.start
        self._file.write(sound.samples.tobytes())
        self.num_samples += len(sound.samples)

    def read(self, first, last):
        """Samples `first` to `last` (float32)."""
        self._file.seek(4 * first)
        return np.frombuffer(self._file.read(4 * (last - first)), np.float32)

    def close(self):
        self._file.close()


class LogMel:
    """
    64 log-mel energies: HTK mels from 50 to 7600 Hz, symmetric Hann windows of 25 ms every 10 ms, ln(power + 1e-8),
    the mean of four for a step of 40 ms, edges cut at 1 % of the loudest 20 ms, values rounded to float16.

    The frames of what is left lie where those of the whole do, so one pass is enough: for either place where steps may
    begin they are kept as float16, 6 kB a second.

    Args:
        loudness ([`Loudness`]): of the same sound, kept up to date by the caller.
    """

    names = tuple(f"mel_{band:02}" for band in range(NUM_MELS))

    def __init__(self, loudness):
        self.loudness = loudness
        self._waiting = np.zeros(0, np.float32)
        self._num_samples = 0
        self._half = np.zeros((0, NUM_MELS))
        self._steps = []

    def add(self, sound):
        """Take the next [`~clip_decoding.Sound`]."""
        self._num_samples += len(sound.samples)
        held = np.concatenate([self._waiting, sound.samples])
        # a pair of frames reaches 80 samples into the next
        count = max(0, (len(held) - (FRAME + HOP - QUIET_FRAME)) // QUIET_FRAME)
        if count:
            power = _mel_power(held, 2 * count)
            # a step is two neighbouring halves; which ones is only known when the beginning is
            halves = np.log(power + FLOOR).reshape(count, 2, NUM_MELS).mean(axis=1)
            halves = np.concatenate([self._half, halves])
            # as stored features are: a model reads the same numbers from a file of features and from a clip
            self._steps.append(((halves[:-1] + halves[1:]) / 2).astype(np.float16))
            self._half = halves[-1:]
        self._waiting = held[count * QUIET_FRAME :]

    def finish(self):
        """`FeatureSequence` of all that came."""
        loudness = self.loudness.values
        if missing := nothing_to_hear(self._num_samples, loudness):
            return FeatureSequence(None, missing=missing)
        loud = np.flatnonzero(loudness > loudness.max() * QUIET_RATIO)
        first = max(0, loud[0] - QUIET_MARGIN)
        num_samples = min((loud[-1] + 1 + QUIET_MARGIN) * QUIET_FRAME, self._num_samples) - first * QUIET_FRAME
        num_steps = max(0, (num_samples - FRAME) // HOP + 1) // 4
        if not num_steps:
            return FeatureSequence(None, missing=f"the sound is too short, {1000 * num_samples / RATE:.0f} ms")
        values = np.concatenate(self._steps)[first : first + 2 * num_steps : 2].astype(np.float32)
        return FeatureSequence(values, start=self.loudness.start + first * self.loudness.step)


def nothing_to_hear(num_samples, loudness):
    """Why there is nothing to hear (`str`), or None."""
    if not num_samples:
        return "there is no sound"
    if not len(loudness):
        return f"the sound is too short, {1000 * num_samples / RATE:.0f} ms"
    return "the sound is silent" if loudness.max() < SILENCE else None


def _mel_power(samples, count):
    """Mel energies float64 [count, 64] of the first `count` frames."""
    window, filters = _window_and_filters()
    # padded here: pocketfft would copy them row by row
    frames = np.zeros((count, FFT))
    views = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[: count * HOP : HOP]
    np.multiply(views, window, out=frames[:, :FRAME])
    # rounded to single precision where the features were that models have been trained on
    spectrum = np.fft.rfft(frames).astype(np.complex64).view(np.float32).astype(np.float64)
    spectrum *= spectrum
    power = spectrum[:, ::2] + spectrum[:, 1::2]
    energies = [power[:, bins] @ triangles for bins, triangles in filters]
    return np.concatenate(energies, axis=1).astype(np.float32).astype(np.float64)


@lru_cache(maxsize=1)
def _window_and_filters():
    """Symmetric Hann window [400]; and triangles whose corners are equally spaced in HTK's mel: for each quarter of
    them, which of the 257 bins it covers (`slice`), and they themselves [bins, 16]."""

    def mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    corners = 700.0 * (10.0 ** (np.linspace(mel(LOWEST), mel(HIGHEST), NUM_MELS + 2) / 2595.0) - 1.0)
    bins = np.linspace(0, RATE // 2, FFT // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = []
    for quarter in np.split(np.maximum(0.0, np.minimum(rising, falling)), 4, axis=1):
        covered = np.flatnonzero(quarter.any(axis=1))
        covered = slice(covered[0], covered[-1] + 1)
        filters.append((covered, np.ascontiguousarray(quarter[covered])))
    return np.hanning(FRAME), filters


class Egemaps:
    """
    The 25 low-level descriptors of eGeMAPS v02 by openSMILE: the mean of four for a step of 40 ms.

    openSMILE's licence is for research and other uses without commerce, whatever its package says of itself.

    Args:
        stored ([`StoredSound`]), loudness ([`Loudness`]): of the same sound, kept up to date by the caller.
    """

    licence = "openSMILE (non-commercial licence of audEERING)"

    def __init__(self, stored, loudness):
        try:
            import opensmile
        except ImportError:
            raise ImportError(
                "eGeMAPS features are computed by openSMILE, which is not installed: pip install opensmile (its "
                "licence allows no commercial use)"
            ) from None
        self.stored, self.loudness = stored, loudness
        self._smile = opensmile.Smile(
            opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors, num_workers=1
        )
        self.names = tuple(self._smile.feature_names)

    def add(self, sound):
        """The sound is read where it is stored."""

    def finish(self):
        """`FeatureSequence` of all that came."""
        loudness = self.loudness.values
        missing = nothing_to_hear(self.stored.num_samples, loudness)
        # below 60 ms openSMILE gives NaN
        if missing is None and self.stored.num_samples < 0.1 * RATE:
            missing = f"the sound is too short, {1000 * self.stored.num_samples / RATE:.0f} ms"
        if missing:
            return FeatureSequence(None, missing=missing)
        frames = np.concatenate(list(self._frames()))
        steps = frames[: len(frames) // 4 * 4].reshape(-1, 4, frames.shape[1])
        return FeatureSequence(steps.mean(axis=1), start=self.stored.start)

    def _frames(self):
        """float32 [frames, 25], one in 10 ms, minute by minute: the pitch of each is smoothed with what stands around,
        so each is heard with a second of its neighbours."""
        minute, around, length = 60 * RATE, RATE, self.stored.num_samples
        for first in range(0, length, minute):
            begin, end = max(0, first - around), min(first + minute + around, length)
            # full scale wraps to its negative in openSMILE
            samples = np.clip(self.stored.read(begin, end), -0.9999, 0.9999)
            frames = self._smile.process_signal(samples, RATE).to_numpy(np.float32)[(first - begin) // HOP :]
            yield frames if first + minute >= length else frames[: minute // HOP]


class AudioEncoding:
    """
    Hidden states of an audio encoder of transformers (Whisper, HuBERT, WavLM, wav2vec 2.0), pooled to 40 ms, heard 20
    seconds at a time.

    Args:
        encode (callable): float32 [n] at 16 kHz -> float32 [time, features], see [`load_audio_encoder`].
        stored ([`StoredSound`]), loudness ([`Loudness`]): of the same sound, kept up to date by the caller.
    """

    def __init__(self, encode, stored, loudness):
        self.encode, self.stored, self.loudness = encode, stored, loudness

    def add(self, sound):
        """The sound is read where it is stored."""

    def finish(self):
        """`FeatureSequence` of all that came."""
        num_samples = self.stored.num_samples
        missing = nothing_to_hear(num_samples, self.loudness.values)
        if missing is None and num_samples < 2 * STEP * RATE:
            missing = f"the sound is too short, {1000 * num_samples / RATE:.0f} ms"
        if missing:
            return FeatureSequence(None, missing=missing)
        length = 20 * RATE
        # a rest too short to be heard alone is left out
        firsts = [first for first in range(0, num_samples, length) if num_samples - first >= 2 * STEP * RATE]
        parts = [self.encode(self.stored.read(first, min(first + length, num_samples))) for first in firsts]
        return FeatureSequence(np.concatenate(parts), start=self.stored.start)


def load_audio_encoder(name, layer=-1, **options):
    """
    A function from sound (float32 [n] at 16 kHz) to features (float32 [n / 640, features]).

    Args:
        name (`str`): id or folder of an audio encoder of transformers; of a Whisper the encoder.
        layer (`int`): whose hidden states; -1 is the last.
        options: as `from_pretrained` takes them (revision, token, ...).
    """
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(name, **options)
    if extractor.sampling_rate != RATE:
        raise ValueError(f"{name} hears {extractor.sampling_rate} Hz; expected an encoder for {RATE} Hz")
    model = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
    model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()

    @torch.inference_mode()
    def encode(samples):
        inputs = dict(extractor(samples, sampling_rate=RATE, return_tensors="pt"))
        inputs = {name: inputs[name] for name in extractor.model_input_names if name in inputs}
        hidden = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        num_steps = max(1, round(len(samples) / RATE / STEP))
        if "input_features" in inputs:
            # what was padded to 30 seconds is not heard
            hidden = hidden[: max(1, round(len(samples) / RATE * len(hidden) / 30))]
        pooled = torch.nn.functional.adaptive_avg_pool1d(hidden.T[None], num_steps)
        return pooled[0].T.contiguous().numpy()

    return encode


def window_functionals(values, window, hop):
    """
    Mean, standard deviation and standard deviation of the differences of each feature in overlapping windows.

    How loud, how much it varies and how fast it changes within half a second says more about an emotion, and less
    about who is speaking, than the single frames do; and a recurrent encoder has ten steps to remember, not sixty.

    Args:
        values (`np.ndarray` [time, dim]).
        window, hop (`int`): length and distance of the windows, in steps. A last window is kept if it is at least half
            full; a shorter sequence is one window.

    Returns:
        `np.ndarray` float32 [windows, 3 * dim]; no window for no step.
    """
    if not len(values):
        return np.zeros((0, 3 * values.shape[1]), dtype=np.float32)
    starts = range(0, max(1, len(values) - window // 2), hop)
    parts = [values[start : start + window] for start in starts]
    # a single step has no differences; twice the same one has, and they are zero
    parts = [np.repeat(part, 2, axis=0) if len(part) == 1 else part for part in parts]
    rows = [np.concatenate([part.mean(axis=0), part.std(axis=0), np.diff(part, axis=0).std(axis=0)]) for part in parts]
    return np.stack(rows).astype(np.float32)
