"""From sound to audio features: what a processor's config names under "audio", computed piece by piece.

Each front end takes mono pieces in order (`add`) and gives a sequence of one step in 40 ms (`finish`). Silence, and
what is too short for one step, gives none, and says why.
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


class LogMel:
    """
    64 log-mel energies: HTK mels from 50 to 7600 Hz, symmetric Hann windows of 25 ms every 10 ms, ln(power + 1e-8),
    the mean of four for a step of 40 ms, edges cut at 1 % of the loudest 20 ms, values rounded to float16.

    The frames of what is left lie where those of the whole do, so one pass is enough: 26 kB are kept for a second.
    """

    names = tuple(f"mel_{band:02}" for band in range(NUM_MELS))

    def __init__(self):
        self._resampler = None
        self._start = 0.0
        self._waiting = np.zeros(0, np.float32)
        self._num_samples = 0
        self._loudness, self._halves = [], []

    def add(self, sound):
        """Take the next [`~clip_decoding.Sound`]."""
        if self._resampler is None:
            self._resampler, self._start = Resampler(sound.sampling_rate), sound.start
        self._take(self._resampler.add(sound.samples))

    def finish(self):
        """`FeatureSequence` of all that came."""
        if self._resampler is None:
            return FeatureSequence(None, missing="there is no sound")
        self._take(self._resampler.rest())
        self._measure(self._waiting[: len(self._waiting) // QUIET_FRAME * QUIET_FRAME])
        loudness = np.concatenate(self._loudness) if self._loudness else np.zeros(0)
        if not len(loudness) or loudness.max() < SILENCE:
            what = "silent" if len(loudness) else f"too short, {1000 * self._num_samples / RATE:.0f} ms"
            return FeatureSequence(None, missing=f"the sound is {what}")
        loud = np.flatnonzero(loudness > loudness.max() * QUIET_RATIO)
        first = max(0, loud[0] - QUIET_MARGIN)
        # the last samples, too few for 20 ms, count as beyond the end
        num_samples = min((loud[-1] + 1 + QUIET_MARGIN) * QUIET_FRAME, self._num_samples) - first * QUIET_FRAME
        num_steps = max(0, (num_samples - FRAME) // HOP + 1) // 4
        if not num_steps:
            return FeatureSequence(None, missing=f"the sound is too short, {1000 * num_samples / RATE:.0f} ms")
        halves = np.concatenate(self._halves)[first : first + 2 * num_steps]
        values = halves.reshape(num_steps, 2, NUM_MELS).mean(axis=1)
        # as stored features are: a model reads the same numbers from a file of features and from a clip
        values = values.astype(np.float16).astype(np.float32)
        return FeatureSequence(values, start=self._start + first * QUIET_FRAME / RATE)

    def _take(self, samples):
        """Loudness of each 20 ms, and the mean log-mel of each two frames that begin in them."""
        self._num_samples += len(samples)
        held = np.concatenate([self._waiting, samples])
        # a pair of frames reaches 80 samples into the next
        count = max(0, (len(held) - (FRAME + HOP - QUIET_FRAME)) // QUIET_FRAME)
        if count:
            self._measure(held[: count * QUIET_FRAME])
            power = _mel_power(held, 2 * count)
            self._halves.append(np.log(power + FLOOR).reshape(count, 2, NUM_MELS).mean(axis=1))
        self._waiting = held[count * QUIET_FRAME :]

    def _measure(self, samples):
        blocks = samples.reshape(-1, QUIET_FRAME).astype(np.float64)
        self._loudness.append(np.sqrt((blocks**2).mean(axis=1)))


def _mel_power(samples, count):
    """Mel energies float64 [count, 64] of the first `count` frames."""
    window, filters = _window_and_filters()
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[: count * HOP : HOP]
    # rounded to single precision where the features were that models have been trained on
    spectrum = np.fft.rfft(frames * window, FFT).astype(np.complex64)
    return (np.abs(spectrum, dtype=np.float64) ** 2 @ filters).astype(np.float32).astype(np.float64)


@lru_cache(maxsize=1)
def _window_and_filters():
    """Symmetric Hann window [400] and triangles [257, 64] whose corners are equally spaced in HTK's mel."""

    def mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    corners = 700.0 * (10.0 ** (np.linspace(mel(LOWEST), mel(HIGHEST), NUM_MELS + 2) / 2595.0) - 1.0)
    bins = np.linspace(0, RATE // 2, FFT // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.hanning(FRAME), np.maximum(0.0, np.minimum(rising, falling))
