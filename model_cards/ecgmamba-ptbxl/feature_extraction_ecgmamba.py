"""From a recording to the tensors that ECGMamba reads: the model's leads, its sampling rate, windows, masks.

Whole recordings and windows of long ones take the same way: a span of the source is read with some context on both
sides, gaps are filled, missing limb leads computed, then it is resampled, filtered, cut and normalised. The context is
as long as the filters remember, so that a window read alone equals the same window of the whole recording.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from numbers import Real

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .recording import Recordings, open_recording, open_recordings
from .recording_channels import (
    FILE_ENDINGS,
    FORMATS,
    LEAST_STEP,
    MOST_STEP,
    STANDARD_LEADS,
    USUAL_STEPS,
    RecordingFile,
    as_array,
    can_be_millivolts,
    lead_name,
    library,
    middle_step,
    unit_in_millivolts,
)
from .recording_limb_leads import arm_reversal_note, limb_lead_doubt

NORMALIZATIONS = ("none", "mean", "per_record", "per_lead")

# Limb leads from one another (Einthoven 1913, Goldberger 1942), each from leads that stand before it.
_LIMB_LEADS = (
    ("I", {"II": 1.0, "III": -1.0}),
    ("II", {"I": 1.0, "III": 1.0}),
    ("III", {"II": 1.0, "I": -1.0}),
    ("aVR", {"I": -0.5, "II": -0.5}),
    ("aVL", {"I": 1.0, "II": -0.5}),
    ("aVF", {"II": 1.0, "I": -0.5}),
)
SHORTEST_SECONDS = 0.5  # less than one heartbeat of anybody's
_FLAT_MILLIVOLTS = 1e-6
_CHUNK_SECONDS = 300.0  # of a long recording read at once
_PAGE_SECONDS = 60.0  # up to which a recording may be a page of paper
_SHORTEST_STRETCH_SECONDS = 2.0  # of a page: a column of twelve leads has 2.5 s
_BASELINE_SECONDS = (0.2, 0.6)
_FILTER_PERIODS = 16


class GapError(ValueError):
    """A lead lacks samples for longer than may be filled in."""


@dataclass(frozen=True)
class Doubt:
    """Why a signal is probably not what it is said to be; `of_all` where that is then so in the whole recording."""

    reason: str
    of_all: bool = False


@dataclass
class Window:
    """A window of a recording, ready for the model but for the batch axis.

    Args:
        start, end (`float`): seconds from the beginning of the recording.
        input_values (`np.ndarray`): float32 `[leads, window]`.
        attention_mask (`np.ndarray`): int64 `[window]`, 0 where a short recording is padded.
        lead_mask (`np.ndarray`): int64 `[leads]`, 0 for an absent lead.
        notes (`tuple[str]`): what was found or done in this window (gaps filled, flat leads).
        doubt (`Doubt`, *optional*): why nothing should be found in it.
    """

    start: float
    end: float
    input_values: np.ndarray
    attention_mask: np.ndarray
    lead_mask: np.ndarray
    notes: tuple[str, ...]
    doubt: Doubt | None = None


class EcgMambaFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns ECG recordings (files, arrays, dicts; see [`open_recording`]) into what the ECGMamba models take.

    Args:
        leads (`tuple[str]`): the leads of the model, in order.
        optional_leads (`tuple[str]`): those that a recording may lack; they become zeros and are masked.
        sampling_rate (`float`): Hz, of the model; recordings are resampled to it (polyphase, linear phase).
        window_seconds (`float`), window_overlap (`float`, share in [0, 1)): how [`~EcgMambaFeatureExtractor.windows`]
            cuts long recordings.
        bandpass (`tuple[float, float]`, *optional*): pass band in Hz, by a zero-phase Butterworth filter of order 3.
        remove_baseline (`bool`): subtract the baseline as medians over 0.2 s, then 0.6 s, find it.
        normalization (`str`): `"none"`; `"mean"`, each lead minus its mean, in millivolts (an electrode's offset says
            nothing, the amplitude does: the default); `"per_record"`, that divided by the standard deviation of the
            record's present leads together; `"per_lead"`, each lead by its own. Over the recording, or the window.
        max_gap_seconds (`float`): missing samples (NaN) are interpolated over up to so long. A lead with a longer gap
            is computed from other limb leads, or masked if it may be lacking; else the gap is an error.

    Tensors: `input_values` float32 `[batch, leads, time]`, `attention_mask` int64 `[batch, time]` (1 = real sample),
    `lead_mask` int64 `[batch, leads]` (1 = lead present).
    """

    model_input_names = ["input_values", "attention_mask", "lead_mask"]
    formats, file_endings = FORMATS, FILE_ENDINGS  # of the files that it reads

    def __init__(
        self,
        leads=STANDARD_LEADS,
        optional_leads=(),
        sampling_rate=100.0,
        window_seconds=10.0,
        window_overlap=0.5,
        bandpass=None,
        remove_baseline=False,
        normalization="mean",
        max_gap_seconds=1.0,
        **kwargs,
    ):
        for derived in ("feature_size", "padding_value", "padding_side"):  # they come back from a saved file
            kwargs.pop(derived, None)
        for name, value in (("leads", leads), ("optional_leads", optional_leads)):
            if not isinstance(value, (list, tuple)) or not all(isinstance(lead, str) for lead in value):
                raise ValueError(f"{name} is {value!r}; expected a list of lead names")
        super().__init__(feature_size=len(leads), sampling_rate=sampling_rate, padding_value=0.0, **kwargs)
        self.leads = tuple(leads)
        self.optional_leads = tuple(optional_leads)
        self.window_seconds = window_seconds
        self.window_overlap = window_overlap
        self.bandpass = tuple(bandpass) if isinstance(bandpass, list) else bandpass
        self.remove_baseline = remove_baseline
        self.normalization = normalization
        self.max_gap_seconds = max_gap_seconds
        self._validate()

    def _validate(self):
        def require(name, condition, expected):
            if not condition:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        def number(name):
            """The value; for what is no finite number nan, which is neither above nor below anything."""
            value = getattr(self, name)
            return value if isinstance(value, Real) and not isinstance(value, bool) and value < math.inf else math.nan

        require("leads", self.leads and len(set(self.leads)) == len(self.leads), "lead names, each named once")
        require("optional_leads", set(self.optional_leads) <= set(self.leads), f"some of the leads {self.leads}")
        require("sampling_rate", number("sampling_rate") > 0, "a number of Hz above 0")
        seconds = f"a number of seconds, at least {SHORTEST_SECONDS}"
        require("window_seconds", number("window_seconds") >= SHORTEST_SECONDS, seconds)
        require("window_overlap", 0 <= number("window_overlap") < 1, "a share in [0, 1)")
        require("normalization", self.normalization in NORMALIZATIONS, f"one of {NORMALIZATIONS}")
        require("max_gap_seconds", number("max_gap_seconds") >= 0, "seconds, 0 or more")
        if self.bandpass is not None:
            half = self.sampling_rate / 2
            edges = self.bandpass if isinstance(self.bandpass, tuple) else ()
            fits = len(edges) == 2 and all(isinstance(edge, Real) for edge in edges) and 0 < edges[0] < edges[1] < half
            require("bandpass", fits, f"(low, high) in Hz with 0 < low < high < {half:g}, half the sampling rate")

    @classmethod
    def from_model_config(cls, config, **kwargs):
        """The feature extractor of a model, from its `EcgMambaConfig`; `kwargs` are further arguments."""
        shared = ("leads", "optional_leads", "sampling_rate", "window_seconds", "window_overlap")
        return cls(**{**{name: getattr(config, name) for name in shared}, **kwargs})

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sampling_rate)

    def window_starts(self, num_samples) -> list[int]:
        """Where the windows of a recording of `num_samples` (at the model's rate) begin."""
        size = self.window_samples
        step = max(1, round(size * (1 - self.window_overlap)))
        starts = list(range(0, max(num_samples - size, 0) + 1, step))
        return [*starts, num_samples - size] if starts[-1] + size < num_samples else starts

    def __call__(
        self,
        recordings,
        sampling_rate=None,
        leads=None,
        units=None,
        padding=True,
        max_length=None,
        truncation=False,
        pad_to_multiple_of=None,
        return_tensors=None,
    ) -> BatchFeature:
        """
        Args:
            recordings: one recording or a list of them: whatever [`open_recording`] takes, or an array
                `[batch, leads, time]`.
            sampling_rate, leads, units: for recordings that do not state them; see [`open_recording`]. An array with
                as many channels as the model has leads is taken to hold those, in the model's order.
            padding, max_length, truncation, pad_to_multiple_of: as in [`~EcgMambaFeatureExtractor.pad`].
            return_tensors (`"pt"` or `"np"`, *optional*): torch or, by default, numpy.

        Returns:
            `BatchFeature` with `input_values`, `attention_mask`, `lead_mask`; its attribute `notes` lists, for each
            recording, what was found and done: leads computed, absent or flat, gaps filled, channels left out.

        Raises:
            ValueError, OSError: in one line, for a recording that cannot become these tensors.
        """
        recordings = _as_list(recordings)
        batch = self._as_clean_batch(recordings, sampling_rate, leads, units)
        if batch is not None:
            features, notes = self._extract_batch(batch, sampling_rate, names_are_stated=leads is not None)
        else:
            given = {"sampling_rate": sampling_rate, "leads": leads, "units": units, "unnamed_leads": self.leads}
            windows = [self._whole(_Source(self, open_recording(recording, **given))) for recording in recordings]
            names = self.model_input_names
            features = {name: [getattr(window, name) for window in windows] for name in names}
            notes = [
                window.notes if window.doubt is None else (*window.notes, window.doubt.reason) for window in windows
            ]
        padded = self.pad(
            features,
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )
        padded.notes = notes
        return padded

    def windows(
        self,
        recording,
        sampling_rate=None,
        leads=None,
        units=None,
        on_gap="raise",
        on_doubt="refuse",
        record=None,
        trusted=True,
    ) -> "Windows":
        """
        The windows of a recording of any length, in time order, in constant memory: iterate over the result; its `len`
        is their number and its `recording` tells name, duration and notes.

        Windows lie `window_seconds * (1 - window_overlap)` apart. The last one ends with the recording, so that no
        second is lost; a recording shorter than a window makes one, padded at its end. Where most leads are there at
        different times, as on a digitised page of paper, each stretch of the same leads is read by itself, and the
        notes say which leads were read when.

        Args:
            recording, sampling_rate, leads, units, record, trusted: see [`open_recording`].
            on_gap (`"raise"` or `"skip"`): what to do about a window with a gap longer than `max_gap_seconds` in a
                lead that the model needs. An optional lead is masked in that window instead.
            on_doubt (`"refuse"` or `"note"`): what whoever reads the windows shall make of those with a `doubt`
                (every lead flat, amplitudes of no heart, limb leads that contradict one another): no findings, or
                findings and a note.
        """
        if on_gap not in ("raise", "skip"):
            raise ValueError(f"on_gap is {on_gap!r}; expected 'raise' or 'skip'")
        if on_doubt not in ("refuse", "note"):
            raise ValueError(f"on_doubt is {on_doubt!r}; expected 'refuse' or 'note'")
        given = {"sampling_rate": sampling_rate, "leads": leads, "units": units, "unnamed_leads": self.leads}
        opened = open_recording(recording, **given, record=record, trusted=trusted)
        return Windows(_Source(self, opened), on_gap, on_doubt)

    def recordings(self, source, sampling_rate=None, leads=None, units=None, trusted=True) -> Recordings:
        """All recordings of a source that may hold many, such as CODE-15's HDF5; see [`open_recordings`]."""
        given = {"sampling_rate": sampling_rate, "leads": leads, "units": units, "unnamed_leads": self.leads}
        return open_recordings(source, **given, trusted=trusted)

    def pad(
        self,
        processed_features,
        padding=True,
        max_length=None,
        truncation=False,
        pad_to_multiple_of=None,
        return_attention_mask=None,
        return_tensors=None,
    ) -> BatchFeature:
        """
        Batch recordings of different lengths: zeros behind the shorter ones, 0 in their `attention_mask`. Use it in a
        collator; keys other than `input_values` and `attention_mask` (`lead_mask`, `labels`) are stacked.

        Args:
            processed_features (`dict` of lists, or `list[dict]`): with `input_values` `[leads, time]` each.
            padding (`bool` or `str`): True or `"longest"`; `"max_length"`; False for none.
            max_length (`int`, *optional*): samples, one window by default.
            truncation (`bool`): cut what is longer than `max_length` at its end.
            pad_to_multiple_of (`int`, *optional*), return_tensors (`"pt"` or `"np"`, *optional*).
        """
        if isinstance(processed_features, (list, tuple)):
            keys = processed_features[0].keys()
            processed_features = {key: [features[key] for features in processed_features] for key in keys}
        features = dict(processed_features)
        values = [np.asarray(value) for value in features["input_values"]]
        masks = features.pop("attention_mask", None)
        masks = [np.ones(v.shape[-1], np.int64) for v in values] if masks is None else [np.asarray(m) for m in masks]
        strategy = self._get_padding_strategies(padding=padding, max_length=max_length or self.window_samples).value
        if truncation:
            limit = max_length or self.window_samples
            values, masks = [value[..., :limit] for value in values], [mask[:limit] for mask in masks]
        if strategy != "do_not_pad":
            length = max(value.shape[-1] for value in values)
            length = length if strategy == "longest" else max(length, max_length or self.window_samples)
            length = length if not pad_to_multiple_of else math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of
            values = np.stack([_pad_end(value, length) for value in values])
            masks = np.stack([_pad_end(mask, length) for mask in masks])
        features["input_values"] = values
        if return_attention_mask is not False:
            features["attention_mask"] = masks
        rest = [key for key in features if key not in ("input_values", "attention_mask")]
        features.update({key: np.stack([np.asarray(value) for value in features[key]]) for key in rest})
        return BatchFeature(features, tensor_type=return_tensors)

    # -- one recording --------------------------------------------------------------------------------------------

    def _whole(self, source) -> Window:
        return source.cut(source.read(0, source.length), 0, source.length)

    # -- a batch of clean arrays, all at once: what training asks for in every step ------------------------------

    def _as_clean_batch(self, recordings, sampling_rate, leads, units):
        """`[batch, leads, time]` in millivolts if the recordings are arrays of one shape that hold the model's leads
        and nothing that needs a closer look, else None."""
        first = recordings[0]
        if any(getattr(recording, "shape", None) != getattr(first, "shape", ()) for recording in recordings):
            return None
        if not all(type(recording) is np.ndarray or hasattr(recording, "detach") for recording in recordings):
            return None  # a table with names, masked samples
        if not isinstance(sampling_rate, Real) or not 0 < sampling_rate < math.inf:
            return None
        if units is not None and not isinstance(units, (str, Real)):
            return None
        given = self.leads if leads is None else leads
        if not isinstance(given, (list, tuple)) or not all(isinstance(lead, str) for lead in given):
            return None
        named = self.leads if leads is None else tuple(lead_name(lead) or lead for lead in leads)
        if named != self.leads or len(first.shape) != 2 or first.shape[0] != len(self.leads):
            return None
        scale = 1.0 if units is None else unit_in_millivolts(units)
        batch = np.stack([as_array(recording) for recording in recordings])
        if (
            scale is None
            or batch.dtype.kind not in ("f" if units is None else "fiu")
            or batch.shape[-1] < SHORTEST_SECONDS * sampling_rate
        ):
            return None
        batch = batch.astype(np.float32) * np.float32(scale)
        if not np.isfinite(batch).all():
            return None
        if units is None and not (_are_plain_millivolts(batch)).all():
            return None
        return batch

    def _extract_batch(self, batch, sampling_rate, names_are_stated):
        up, down = _ratio(self.sampling_rate, sampling_rate)
        length = math.ceil(batch.shape[-1] * up / down)
        values = _resample_span(batch, 0, batch.shape[-1], up, down, 0, length)
        values = self.normalize(self._filter(values), np.ones(values.shape[:-1], bool))
        features = {
            "input_values": values,
            "attention_mask": np.ones((len(values), length), np.int64),
            "lead_mask": np.ones(values.shape[:-1], np.int64),
        }
        return features, [self._notes_of_clean(signal, sampling_rate, names_are_stated) for signal in batch]

    def _notes_of_clean(self, signal, sampling_rate, names_are_stated):
        notes, doubt = _look_at(self.leads, signal, np.ones(len(signal), bool), sampling_rate)
        if doubt is None and names_are_stated:
            notes += tuple(filter(None, [arm_reversal_note(signal, self.leads, sampling_rate)]))
            doubt = _limb_leads_doubt(signal, self.leads)
        return notes if doubt is None else (*notes, doubt.reason)

    # -- filters ------------------------------------------------------------------------------------------------------

    @property
    def _filter_memory(self) -> int:
        """Samples after which the filters have forgotten (to 1e-6)."""
        memory = 0
        if self.remove_baseline:
            memory += sum(math.ceil(seconds / 2 * self.sampling_rate) + 1 for seconds in _BASELINE_SECONDS)
        if self.bandpass is not None:
            _, poles, _ = library("scipy.signal").butter(
                3, self.bandpass, "bandpass", fs=self.sampling_rate, output="zpk"
            )
            memory += math.ceil(math.log(1e-6) / math.log(np.abs(poles).max()))
        return memory

    def _filter(self, values):
        """Baseline removal, then the band pass, along the last axis."""
        if self.remove_baseline:
            baseline, median_filter = values, library("scipy.ndimage").median_filter
            for seconds in _BASELINE_SECONDS:
                size = [1] * (values.ndim - 1) + [round(seconds * self.sampling_rate) | 1]
                baseline = median_filter(baseline, size=size, mode="nearest")
            values = values - baseline
        if self.bandpass is not None:
            scipy_signal = library("scipy.signal")
            sections = scipy_signal.butter(3, self.bandpass, "bandpass", fs=self.sampling_rate, output="sos")
            padding = min(self._filter_memory, values.shape[-1] - 1)
            values = scipy_signal.sosfiltfilt(sections, values, axis=-1, padlen=padding).astype(np.float32)
        return values

    def normalize(self, values, present):
        """`values` `[..., leads, time]`, `present` `[..., leads]`; absent leads stay zero, flat ones become zero."""
        if self.normalization == "none":
            return values
        values = values - values.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        if self.normalization == "mean":
            return values
        power = np.square(values, dtype=np.float64).mean(axis=-1, keepdims=True)
        if self.normalization == "per_record":
            count = np.maximum(present.sum(axis=-1), 1)[..., None, None]
            power = (power * present[..., None]).sum(axis=-2, keepdims=True) / count
        deviation = np.sqrt(power)
        return (values / np.where(deviation < _FLAT_MILLIVOLTS, 1.0, deviation)).astype(np.float32)


class Windows:
    """The windows of a recording, made while they are iterated over ([`EcgMambaFeatureExtractor.windows`])."""

    def __init__(self, source, on_gap, on_doubt):
        self._source = source
        self.on_gap, self.on_doubt = on_gap, on_doubt
        size = source.extractor.window_samples
        self._spans = [(start, min(start + size, source.length)) for start in self._starts_in(0, source.length)]
        self._span, self._page_notes = None, ()
        if source.file.duration <= _PAGE_SECONDS:
            self._span = source.read(0, source.length)  # all of it is at hand then
            if stretches := source.stretches_of_page(self._span):
                self._page_notes = source.notes_on_page(stretches)
                readable = [(first, last) for first, last, lacking in stretches if source.is_enough(lacking)]
                self._spans = [
                    (start, min(start + size, last))
                    for first, last in readable
                    for start in self._starts_in(first, last)
                ]

    def _starts_in(self, first, last):
        return [first + start for start in self._source.extractor.window_starts(last - first)]

    @property
    def recording(self) -> RecordingFile:
        return self._source.file

    @property
    def notes(self) -> tuple[str, ...]:
        """What holds for the whole recording: channels left out, leads computed or absent, or read when."""
        return (*self._source.notes, *self._page_notes)

    def __len__(self):
        """The number of windows; with `on_gap="skip"`, the most that there can be."""
        return len(self._spans)

    def __iter__(self) -> Iterator[Window]:
        source, size = self._source, self._source.extractor.window_samples
        chunk = max(size, round(_CHUNK_SECONDS * source.extractor.sampling_rate))
        span = self._span
        for start, stop in self._spans:
            if span is None or stop > span.stop:
                span = source.read(start, min(start + chunk, source.length))
            try:
                window = source.cut(span, start, stop, is_of_page=bool(self._page_notes))
            except GapError:
                if self.on_gap == "raise":
                    raise
                continue
            window.input_values = _pad_end(window.input_values, size)
            window.attention_mask = _pad_end(window.attention_mask, size)
            yield window


@dataclass
class _Span:
    """Samples `start` to `stop` at the model's rate, and the source's own samples that they were made from."""

    start: int
    stop: int
    values: np.ndarray
    raw: np.ndarray
    own: np.ndarray  # the file's leads that `raw` is mixed from, gaps and all
    raw_start: int
    gaps: list  # (row of the file's leads, first second, last second), short or too long
    without: frozenset = frozenset()  # rows of the file's leads that were not used


class _Source:
    """An opened recording as one model sees it: its leads and its sampling rate."""

    def __init__(self, extractor, file):
        self.extractor, self.file = extractor, file
        if file.duration < SHORTEST_SECONDS:
            raise ValueError(f"{file.name} lasts {file.duration:.3f} s; expected at least {SHORTEST_SECONDS} s")
        self.up, self.down = _ratio(extractor.sampling_rate, file.sampling_rate)
        self.length = math.ceil(file.num_samples * self.up / self.down)
        self._mix_leads()

    def _mix_leads(self):
        """`mixture` `[model's leads, file's leads]` gives each of the model's leads, computed ones included."""
        extractor, file = self.extractor, self.file
        self.mixture, self.present = self.mixed(frozenset())
        self.required = np.array([lead not in extractor.optional_leads for lead in extractor.leads])
        absent = [lead for lead, is_present in zip(extractor.leads, self.present, strict=True) if not is_present]
        if (self.required & ~self.present).any() or not self.present.any():
            missing = [lead for lead in absent if lead not in extractor.optional_leads] or absent
            raise ValueError(
                f"{file.name} has the leads {', '.join(file.leads)}; the model also needs {', '.join(missing)}"
            )
        self.is_as_it_lies = tuple(extractor.leads) == file.leads
        computed = [lead for lead in extractor.leads if lead not in absent and lead not in file.leads]
        used = self.mixture.any(axis=0)
        unused = [lead for lead, is_used in zip(file.leads, used, strict=True) if not is_used]
        self.notes = file.notes
        for leads, text in (
            (computed, "computed from the other limb leads"),
            (absent, "absent"),
            (unused, "not used"),
        ):
            if leads:
                self.notes += (f"{text}: {', '.join(leads)}",)

    def mixed(self, without):
        """The mixture, and which of the model's leads it gives, without some rows of the file's leads."""
        return _mixture(tuple(self.extractor.leads), self.file.leads, without)

    def is_enough(self, without):
        """Whether the model can do without these rows of the file's leads."""
        present = self.mixed(without)[1]
        return bool(present.any() and not (self.required & ~present).any())

    def read(self, start, stop, without=frozenset()) -> _Span:
        """A span of the recording at the model's rate, before normalisation, as if cut from the whole."""
        extractor, file, up, down = self.extractor, self.file, self.up, self.down
        memory = extractor._filter_memory
        first, last = max(start - memory, 0), min(stop + memory, self.length)
        gap = math.ceil(extractor.max_gap_seconds * file.sampling_rate) + 1
        reach = _resampling_reach(up, down) + down + gap
        raw_start = max(first * down // up - reach, 0)
        raw_stop = min(last * down // up + reach, file.num_samples)
        raw = file.read(raw_start, raw_stop).signal
        own = raw
        raw, gaps = _fill_gaps(own)
        raw = raw if self.is_as_it_lies and not without else self.mixed(without)[0] @ raw
        values = _resample_span(raw, raw_start, file.num_samples, up, down, first, last)
        values = extractor._filter(values)[:, start - first : stop - first]
        rate = file.sampling_rate
        gaps = [(row, (raw_start + a) / rate, (raw_start + b) / rate) for row, a, b in gaps]
        return _Span(start, stop, values, raw, own, raw_start, gaps, without)

    def is_too_long(self, gap):
        _, first, last = gap
        return last - first > self.extractor.max_gap_seconds + 1e-9

    def stretches_of_page(self, span):
        """
        (start, stop, rows of the file's leads that lack samples) at the model's rate, of a span in which most leads
        have long gaps, and not all the same: as of a page of paper, which shows each for a while. Else nothing.
        """
        gaps = [gap for gap in span.gaps if self.is_too_long(gap)]
        of_row = {}
        for row, *stretch in gaps:
            of_row.setdefault(row, []).append(stretch)
        if 2 * len(of_row) <= len(self.file.leads) or all(gap == of_row[gaps[0][0]] for gap in of_row.values()):
            return []
        rate = self.file.sampling_rate * self.up / self.down
        borders = sorted({0.0, self.file.duration, *(second for _, *stretch in gaps for second in stretch)})
        stretches = []
        for first, last in pairwise(borders):
            if last - first < _SHORTEST_STRETCH_SECONDS:
                continue
            lacking = frozenset(row for row, a, b in gaps if a < last and b > first)
            if len(lacking) < len(self.file.leads):
                stretches.append((math.ceil(first * rate - 1e-6), min(int(last * rate + 1e-6), self.length), lacking))
        return stretches

    def notes_on_page(self, stretches):
        """
        Which leads are read when.

        Raises:
            ValueError: where the model can do with none of the stretches.
        """
        rate = self.file.sampling_rate * self.up / self.down
        held, is_readable = [], []
        for start, stop, lacking in stretches:
            leads = ", ".join(lead for row, lead in enumerate(self.file.leads) if row not in lacking)
            is_readable.append(self.is_enough(lacking))
            held.append(f"{start / rate:.2f} to {stop / rate:.2f} s: {leads}")
        if not any(is_readable):
            needed = ", ".join(
                lead for lead, is_needed in zip(self.extractor.leads, self.required, strict=True) if is_needed
            )
            raise ValueError(
                f"{self.file.name} holds its leads at different times ({'; '.join(held)}), as a page of paper; the "
                f"model needs {needed or 'a lead of its own'} at once (those in optional_leads may be lacking)"
            )
        read = "; ".join(text for text, is_read in zip(held, is_readable, strict=True) if is_read)
        left_out = "; ".join(text for text, is_read in zip(held, is_readable, strict=True) if not is_read)
        notes = (f"leads at different times, as on a page of paper, read from {read}",)
        return (*notes, f"left out, as the model needs further leads: {left_out}") if left_out else notes

    def cut(self, span, start, stop, is_of_page=False) -> Window:
        """One window of a span: masks, notes, normalisation."""
        extractor, file = self.extractor, self.file
        rate = file.sampling_rate * self.up / self.down
        begin, end = start / rate, min(stop / rate, file.duration)
        gaps = [gap for gap in span.gaps if gap[1] < end and gap[2] > begin]
        lacking = frozenset(row for row, *_ in filter(self.is_too_long, gaps))
        if lacking and not self.mixture[:, list(lacking)].any():
            lacking = frozenset()  # nobody asks for them
        mixture, present = self.mixed(lacking)
        if lacking and not self.is_enough(lacking):
            row, first, last = next(gap for gap in gaps if self.is_too_long(gap) and self.mixture[:, gap[0]].any())
            raise GapError(
                f"{file.name}: lead {file.leads[row]} has no samples from {first:.2f} to {last:.2f} s; gaps of "
                f"up to {extractor.max_gap_seconds:g} s (max_gap_seconds) are filled"
            )
        notes = [] if is_of_page else self._notes_on_gaps(gaps, lacking, mixture, begin, end)
        if lacking:
            span = self.read(start, stop, lacking)
        first, last = start * self.down // self.up - span.raw_start, -(-stop * self.down // self.up) - span.raw_start
        raw, own = span.raw[:, first:last], span.own[:, first:last]
        of_signal, doubt = _look_at(extractor.leads, raw, present, file.sampling_rate)
        notes.extend(of_signal)
        if file.doubt is not None:
            doubt = Doubt(file.doubt, of_all=True)
        elif doubt is None and file.names_are_stated:
            notes.extend(filter(None, [arm_reversal_note(own, file.leads, file.sampling_rate)]))
            doubt = _limb_leads_doubt(own, file.leads)
        values = span.values[:, start - span.start : stop - span.start] * present[:, None]
        return Window(
            start=begin,
            end=end,
            input_values=np.ascontiguousarray(extractor.normalize(values, present)),
            attention_mask=np.ones(stop - start, np.int64),
            lead_mask=present.astype(np.int64),
            notes=(*self.notes, *notes) if (start, stop) == (0, self.length) else tuple(notes),
            doubt=doubt,
        )

    def _notes_on_gaps(self, gaps, lacking, mixture, begin, end):
        """What is done about gaps in a window: filled, or done without the lead."""
        notes, file = [], self.file
        for row in dict.fromkeys(row for row, *_ in gaps):
            lead, of_row = file.leads[row], [(a, b) for other, a, b in gaps if other == row]
            if row in lacking and self.mixture[:, row].any():
                is_whole = any(a <= begin and b >= end for a, b in of_row)
                what = "no samples" if is_whole else f"no samples for more than {self.extractor.max_gap_seconds:g} s"
                place = self.extractor.leads.index(lead) if lead in self.extractor.leads else None
                is_computed = place is not None and mixture[place].any()
                notes.append(
                    f"lead {lead}: {what}, {'computed from the other limb leads' if is_computed else 'masked'}"
                )
            elif row not in lacking and mixture[:, row].any():
                notes.append(
                    f"lead {lead}: {len(of_row)} gap{'s' * (len(of_row) > 1)} filled by interpolation, "
                    f"{sum(b - a for a, b in of_row):.3f} s in all, the first at {of_row[0][0]:.2f} s"
                )
        return notes


@lru_cache
def _mixture(leads, file_leads, without=frozenset()):
    """float32 `[leads, file_leads]`, which gives each of `leads` from the file's but the rows `without`, and which of
    them it gives."""
    rows = dict(zip(file_leads, np.eye(len(file_leads), dtype=np.float32), strict=True))
    rows = {lead: share for row, (lead, share) in enumerate(rows.items()) if row not in without}
    for lead, recipe in _LIMB_LEADS:
        if lead not in rows and all(other in rows for other in recipe):
            rows[lead] = sum(np.float32(share) * rows[other] for other, share in recipe.items())
    absent = np.zeros(len(file_leads), np.float32)
    mixture, present = np.stack([rows.get(lead, absent) for lead in leads]), np.array([lead in rows for lead in leads])
    for array in (mixture, present):
        array.setflags(write=False)  # it is everybody's
    return mixture, present


def _as_list(recordings) -> list:
    """The recordings of a call: nested lists of numbers are arrays, an array `[batch, leads, time]` is a batch."""
    if isinstance(recordings, (list, tuple)) and recordings and isinstance(recordings[0], (list, tuple, int, float)):
        recordings = np.asarray(recordings)
    if getattr(recordings, "ndim", None) == 3:
        recordings = list(recordings)
    if not isinstance(recordings, (list, tuple)):
        recordings = [recordings]
    if not recordings:
        raise ValueError("recordings is empty; expected at least one recording")
    return list(recordings)


def _ratio(target, source):
    """Up and down factors of the resampling. A rate such as 249.89 Hz gets the nearest fraction with a denominator up
    to 2000, which stretches time by less than one part in a thousand; the windows' times allow for that."""
    ratio = Fraction(target / source).limit_denominator(2000)
    return ratio.numerator, ratio.denominator


@lru_cache
def _resampling_filter(up, down):
    """Low pass at 0.9 of the lower Nyquist frequency, over 16 periods of the lower rate to either side: mains hum at
    50 Hz must not fold into a model's 100 Hz, as it does with scipy's default, which lets half of it through."""
    taps, cutoff = 2 * _FILTER_PERIODS * max(up, down) + 1, 0.9 / max(up, down)
    return library("scipy.signal").firwin(taps, cutoff, window=("kaiser", 5.0))


def _resampling_reach(up, down):
    """Source samples to either side that an output sample depends on."""
    return math.ceil(_FILTER_PERIODS * max(up, down) / up) + 2


def _resample_span(raw, raw_start, num_samples, up, down, start, stop):
    """Samples `start` to `stop` of the whole recording resampled by `up / down`, from `raw`, which holds its samples
    from `raw_start` on, among them all that the filter reaches. The recording's ends are continued by their value."""
    if up == down:
        return raw[..., start - raw_start : stop - raw_start]
    reach = _resampling_reach(up, down)
    first = (start * down // up - reach) // down * down  # a multiple of down falls on an output sample
    last = stop * down // up + reach
    before, after = max(0, -first), max(0, last - num_samples)
    part = raw[..., max(first, 0) - raw_start : min(last, num_samples) - raw_start]
    part = np.pad(part, [(0, 0)] * (raw.ndim - 1) + [(before, after)], mode="edge")
    offset = start - first // down * up
    filtered = library("scipy.signal").resample_poly(part, up, down, axis=-1, window=_resampling_filter(up, down))
    return filtered[..., offset : offset + stop - start].astype(np.float32, copy=False)


def _fill_gaps(raw):
    """Interpolate linearly over NaN (at an end: continue the nearest value); the gaps as (row, start, stop). A row
    without any sample becomes zero."""
    if not np.isnan(raw).any():
        return raw, []
    raw, gaps = raw.copy(), []
    for row in range(len(raw)):
        missing = np.isnan(raw[row])
        if not missing.any():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], missing, [0]]).astype(np.int8)))
        gaps.extend((row, int(a), int(b)) for a, b in edges.reshape(-1, 2))
        known = np.flatnonzero(~missing)
        raw[row, missing] = np.interp(np.flatnonzero(missing), known, raw[row, known]) if len(known) else 0.0
    return raw, gaps


def _look_at(leads, raw, present, sampling_rate):
    """Notes on the millivolts `[leads, time]`, and the doubt that they are an ECG: all flat, more or less than a heart
    makes."""
    heights = np.ptp(raw, axis=-1)
    flat = present & (heights < _FLAT_MILLIVOLTS)
    if flat[present].all():
        return (), Doubt("every lead is flat: there is no ECG in it")
    names = ", ".join(lead for lead, is_flat in zip(leads, flat, strict=True) if is_flat)
    notes = (f"flat: {names}",) if names else ()
    if not can_be_millivolts(raw[present].std(axis=-1).max()):
        return notes, Doubt("its amplitudes are not those of an ECG in mV: is the unit right?")
    present = present & ~flat
    if not 4 * USUAL_STEPS[0] < np.median(heights[present]) < USUAL_STEPS[1]:  # one recording in a hundred
        step = middle_step(raw[present], sampling_rate)
        text = f"its leads rise by {step:.2g} mV within 30 ms, {{}} for an ECG: is the unit right?"
        if not LEAST_STEP < step < MOST_STEP:
            return notes, Doubt(text.format("too much" if step > 1 else "too little"))
        if not USUAL_STEPS[0] < step < USUAL_STEPS[1]:
            notes = (*notes, text.format("much" if step > 1 else "little"))
    return notes, None


def _are_plain_millivolts(batch):
    """Which signals of `[batch, leads, time]` are millivolts at first sight; `open_recording` looks at the others."""
    heights = np.ptp(batch, axis=-1)
    is_whole = (batch[..., :1000] == np.round(batch[..., :1000])).all(axis=(-1, -2)) & (heights.max(axis=-1) > 2)
    return can_be_millivolts(batch.std(axis=-1).max(axis=-1)) & (np.median(heights, axis=-1) < 8) & ~is_whole


def _limb_leads_doubt(signal, leads):
    reason = limb_lead_doubt(signal, leads)
    return None if reason is None else Doubt(reason, of_all=True)


def _pad_end(array, length):
    if array.shape[-1] == length:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])])


__all__ = ["EcgMambaFeatureExtractor"]
