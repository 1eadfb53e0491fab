"""What an electrocardiograph prints beside its findings: rate, intervals, axis, and how clean each lead is.

neurokit2 (`pip install neurokit2`) finds the beats, where P begins and where T ends. Where QRS begins and ends is read
from the slopes of all leads' median beats together: of neurokit2's ways to delineate, the one that finds P and T best
("prominence") makes no QRS longer than about 100 ms. An interval is the median of its beats; where too few beats show
it, or they disagree, it is None, and `failed` says why.
"""

import math
import warnings

import numpy as np
from scipy.signal import resample_poly

# leads in which beats and waves are looked for, the first first
BEST_LEADS = ("II", "V5", "I", "MLII", "V2", "V4", "V6", "V3", "aVF", "V1")
CANDIDATES = 3
# waves are delineated at this rate, at which neurokit2's wavelets are at home
RATE = 500
MOST_SECONDS = 60
# seconds before and after R that make a beat
BEFORE, AFTER = 0.25, 0.45
# peaks that are found in noise resemble one another by up to .7, 99 % of PTB-XL's recordings by more than .9
LEAST_ALIKE = 0.75
# milliseconds within which an interval is believed
BOUNDS = {"pr_ms": (80, 400), "qrs_ms": (50, 240), "qt_ms": (220, 700)}
# QRS is where the leads' common slope is above this share of its highest
LEAST_SLOPE = 0.05
# of the beats, how many must show an interval, and how far (ms) half of them may lie from their median
LEAST_SHARE, MOST_DEVIATION = 0.5, {"pr_ms": 15, "qrs_ms": 0, "qt_ms": 30}
FIELDS = (
    "heart_rate_bpm", "rr_ms", "sdnn_ms", "rmssd_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "qtc_fridericia_ms",
    "axis_degrees",
)  # fmt: skip


def measure(signal, sampling_rate, leads):
    """
    Args:
        signal (`np.ndarray` of shape `(leads, time)`): millivolts; NaN where there is none. At most a minute is read.
        sampling_rate (`float`), leads (`tuple[str]`)

    Returns:
        `dict`: numbers or None under FIELDS (RR intervals: mean, standard deviation, root mean square of successive
        differences; QTc by Bazett, and by Fridericia; axis of QRS in the frontal plane, -180 to 180), `beats` (how
        many were found), `lead` (where), `seconds` (of how much), `lead_quality` (for each lead how much its beats
        resemble their median, the mean correlation, 0 to 1), `failed` (field: why it is None).

    Raises:
        ImportError: without neurokit2. ValueError: for a shape that does not fit the leads.
    """
    neurokit = import_neurokit()
    signal = np.asarray(signal, dtype=np.float64)
    if signal.ndim != 2 or len(signal) != len(leads):
        raise ValueError(f"signal is {signal.shape}; expected ({len(leads)} leads, time)")
    signal = at_rate(signal[:, : round(MOST_SECONDS * sampling_rate)], sampling_rate)
    result = dict.fromkeys(FIELDS) | {"beats": 0, "lead": None, "seconds": signal.shape[1] / RATE}
    result |= {"lead_quality": dict.fromkeys(leads, 0.0), "failed": {}}

    lead, cleaned, peaks = find_beats(neurokit, signal, leads)
    if lead is None:
        result["failed"] = dict.fromkeys(FIELDS, "fewer than three beats found that resemble one another")
        return result
    result |= {"lead": lead, "beats": len(peaks)}
    result["lead_quality"] = {name: quality(row, peaks) for name, row in zip(leads, signal, strict=True)}
    intervals = 1000 * np.diff(peaks) / RATE
    result["rr_ms"], result["heart_rate_bpm"] = intervals.mean(), 60_000 / intervals.mean()
    result["sdnn_ms"], result["rmssd_ms"] = intervals.std(ddof=1), np.sqrt(np.mean(np.diff(intervals) ** 2))

    begin, end = qrs(signal, peaks)
    result["qrs_ms"], why = interval(np.full(len(peaks), end - begin), "qrs_ms", "QRS complexes", len(peaks))
    if why:
        result["failed"]["qrs_ms"] = why
    waves = delineate(neurokit, cleaned, peaks)
    for field, wave, what in (("pr_ms", "ECG_P_Onsets", "P waves"), ("qt_ms", "ECG_T_Offsets", "ends of T")):
        from_peaks = waves[wave] if result["qrs_ms"] is not None and wave in waves else np.zeros(0)
        lengths = begin - from_peaks if field == "pr_ms" else from_peaks - begin
        result[field], why = interval(lengths, field, what, len(peaks))
        if why:
            result["failed"][field] = why
    if result["qt_ms"] is None:
        result["failed"]["qtc_ms"] = result["failed"]["qtc_fridericia_ms"] = result["failed"]["qt_ms"]
    else:
        seconds = result["rr_ms"] / 1000
        result["qtc_ms"], result["qtc_fridericia_ms"] = (result["qt_ms"] / seconds**power for power in (1 / 2, 1 / 3))
    result["axis_degrees"], why = axis(signal, leads, peaks, result["qrs_ms"])
    if why:
        result["failed"]["axis_degrees"] = why
    return {name: rounded(value) for name, value in result.items()}


def import_neurokit():
    try:
        import neurokit2
    except ImportError as error:
        raise ImportError("measuring a recording needs neurokit2: pip install neurokit2") from error
    return neurokit2


def at_rate(signal, sampling_rate):
    """[leads, time] at RATE, gaps filled by straight lines."""
    filled = np.zeros_like(signal)
    for row, lead in zip(filled, signal, strict=True):
        real = np.isfinite(lead)
        if real.any():
            row[:] = np.interp(np.arange(len(lead)), np.flatnonzero(real), lead[real])
    ratio = (RATE / sampling_rate).as_integer_ratio() if RATE % sampling_rate else (round(RATE / sampling_rate), 1)
    if max(ratio) > 10_000:  # a rate such as 128.01 Hz
        times = np.arange(0, signal.shape[1] - 1, sampling_rate / RATE)
        return np.stack([np.interp(times, np.arange(len(row)), row) for row in filled])
    return resample_poly(filled, *ratio, axis=1, padtype="line") if ratio != (1, 1) else filled


def find_beats(neurokit, signal, leads):
    """(lead, its cleaned signal, the samples of its R peaks) in the lead whose beats resemble one another most."""
    candidates = sorted(range(len(leads)), key=lambda i: BEST_LEADS.index(leads[i]) if leads[i] in BEST_LEADS else 99)
    candidates = [index for index in candidates if signal[index].std() > 1e-4][:CANDIDATES]
    best = None, None, None, LEAST_ALIKE
    for index in candidates:
        try:
            cleaned = neurokit.ecg_clean(signal[index], sampling_rate=RATE)
            peaks = neurokit.ecg_findpeaks(cleaned, sampling_rate=RATE)["ECG_R_Peaks"]
        except (ValueError, IndexError, ZeroDivisionError):  # a recording too short for its filters, or without beats
            continue
        peaks = np.asarray(peaks, dtype=int)
        alike = quality(cleaned, peaks) if len(peaks) >= 3 else 0
        if alike > best[-1]:
            best = leads[index], cleaned, peaks, alike
    return best[:-1]


def beats_of(row, peaks):
    """[beats, time]: those that lie within the recording."""
    before, after = round(BEFORE * RATE), round(AFTER * RATE)
    peaks = [peak for peak in peaks if before <= peak < len(row) - after]
    return np.stack([row[peak - before : peak + after] for peak in peaks]) if peaks else np.zeros((0, before + after))


def quality(row, peaks):
    """Mean correlation of a lead's beats with their median, at least 0."""
    beats = beats_of(row, peaks)
    if len(beats) < 2:
        return 0.0
    beats = beats - beats.mean(axis=1, keepdims=True)
    median = np.median(beats, axis=0)
    lengths = np.linalg.norm(beats, axis=1) * np.linalg.norm(median)
    alike = np.divide(beats @ median, lengths, out=np.zeros(len(beats)), where=lengths > 1e-9)
    return max(0.0, float(alike.mean()))


def qrs(signal, peaks):
    """Begin and end of QRS, in milliseconds from its R peak."""
    beats = [beats_of(row, peaks) for row in signal]
    if not len(beats[0]):
        return 0.0, 0.0
    slopes = np.gradient(np.stack([np.median(each, axis=0) for each in beats]), axis=1)
    slope = np.convolve(np.sqrt((slopes**2).sum(0)), np.ones(5) / 5, "same")
    middle, first, last = round(BEFORE * RATE), round((BEFORE - 0.12) * RATE), round((BEFORE + 0.2) * RATE)
    steepest, quiet, still = first + int(slope[first:last].argmax()), np.median(slope), round(0.012 * RATE)
    least = quiet + LEAST_SLOPE * (slope[steepest] - quiet)
    begin, end = steepest, steepest
    while begin > first and not (slope[begin - still : begin] < least).all():
        begin -= 1
    while end < last and not (slope[end + 1 : end + 1 + still] < least).all():
        end += 1
    return 1000 * (begin - middle) / RATE, 1000 * (end - middle) / RATE


def delineate(neurokit, cleaned, peaks):
    """neurokit2's waves: {name: milliseconds from the R peak, NaN for a beat without}; none where it gives up."""
    try:
        with warnings.catch_warnings():  # pandas 3 warns of a line in neurokit2's table, which is not used here
            warnings.simplefilter("ignore")
            waves = neurokit.ecg_delineate(cleaned, peaks, sampling_rate=RATE, method="prominence")[1]
    except (ValueError, IndexError, ZeroDivisionError, TypeError):
        return {}
    return {
        name: 1000 * (np.asarray(samples, dtype=float) - peaks) / RATE
        for name, samples in waves.items()
        if len(samples) == len(peaks)
    }


def interval(lengths, field, what, num_beats):
    """(median in milliseconds or None, why it is None)"""
    low, high = BOUNDS[field]
    with np.errstate(invalid="ignore"):
        lengths = lengths[(lengths >= low) & (lengths <= high)]
    if len(lengths) < max(2, LEAST_SHARE * num_beats):
        return None, f"{what} found in {len(lengths)} of {num_beats} beats"
    median = float(np.median(lengths))
    deviation = float(np.median(np.abs(lengths - median)))
    if deviation > MOST_DEVIATION[field]:
        return None, f"beats disagree: half of them by more than {deviation:.0f} ms"
    return median, None


def axis(signal, leads, peaks, qrs_ms):
    """(degrees or None, why it is None): from the areas of QRS in I and aVF, on the median beat."""
    lead = dict(zip(leads, signal, strict=True))
    if "I" not in lead or not ("aVF" in lead or "II" in lead):
        return None, "needs the leads I and aVF, or I and II"
    vertical = lead["aVF"] if "aVF" in lead else lead["II"] - lead["I"] / 2
    middle, half = round(BEFORE * RATE), round((qrs_ms or 100) / 2000 * RATE)
    areas = []
    for row in (lead["I"], vertical):
        beats = beats_of(row, peaks)
        if len(beats) < 2:
            return None, "fewer than two whole beats"
        beat = np.median(beats, axis=0)
        # what lies before QRS is the line that it rises from
        beat = beat - np.median(beat[middle - half - RATE // 25 : middle - half - RATE // 100])
        areas.append(1000 * beat[middle - half : middle + half].sum() / RATE)
    if math.hypot(*areas) < 2:  # microvolt seconds
        return None, "QRS is too small in I and aVF"
    return math.degrees(math.atan2(2 / math.sqrt(3) * areas[1], areas[0])), None


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(float(value), 3 if value < 1.5 else 1) if isinstance(value, (float, np.floating)) else value


def as_line(measured):
    """The measurements in one line, as an electrocardiograph prints them."""
    parts = []
    for field, name, unit in (
        ("heart_rate_bpm", "rate", "/min"), ("pr_ms", "PR", "ms"), ("qrs_ms", "QRS", "ms"), ("qt_ms", "QT", "ms"),
        ("qtc_ms", "QTc", "ms"), ("axis_degrees", "axis", "°"), ("sdnn_ms", "SDNN", "ms"),
    ):  # fmt: skip
        value = measured[field]
        number = "–" if value is None else f"{value:.0f}" + ("" if unit in ("°", "/min") else " ") + unit
        parts.append(f"{name} {number}")
    return "    ".join(parts)
