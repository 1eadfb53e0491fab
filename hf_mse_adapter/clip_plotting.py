"""Pictures of what was read: a clip's voice and face over time beside the answer, a conversation by its speakers."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .audio_features import RATE, Loudness, Resampler, StoredSound
from .clip_decoding import Clip, Sound
from .clip_features import DEFAULT_FRONT_ENDS, FRAME_RATE
from .face_features import FaceGeometry
from .speech_recognition import speech_spans

MOUTH = ("mouth_open", "mouth_corner_left", "mouth_corner_right")
BROW = ("brow_inner_left", "brow_inner_right", "eye_open_left", "eye_open_right")
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 500.0


def plot_clip(clip, answer, path, reader):
    """
    Draw loudness with the spans of speech, pitch, mouth and brows over the clip's time, and the answer.

    Args:
        clip: a path, bytes or a binary file object.
        answer (`dict`): the pipeline's.
        path (`str` or `Path`): where the picture goes; its suffix chooses the format.
        reader ([`~clip_features.ClipReader`]): whose face networks look.
    """
    curves = _curves(clip, reader)
    with _figure(path, rows=4, width=11, height=9) as (figure, axes):
        loudness, pitch, mouth, brow = axes[:, 0]
        loudness.plot(*curves["loudness"], color="C0")
        for begin, end in curves["speech"]:
            loudness.axvspan(begin, end, color="C0", alpha=0.12, lw=0)
        loudness.set(ylabel="loudness (dB)")
        pitch.plot(*curves["pitch"], ".", markersize=3, color="C1")
        pitch.set(ylabel="pitch (Hz)", ylim=(LOWEST_PITCH, HIGHEST_PITCH), yscale="log")
        for axis, names, label in ((mouth, MOUTH, "mouth"), (brow, BROW, "brows, eyes")):
            for name in names:
                if name in curves:
                    axis.plot(*curves[name], label=name.replace("_", " "))
            axis.set(ylabel=f"{label} (eye distances)")
            if axis.lines:
                axis.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
            else:
                axis.text(0.5, 0.5, "no face", transform=axis.transAxes, ha="center", color="grey")
        for axis in axes[:, 0]:
            axis.set_xlim(0, max(curves["seconds"], 0.1))
            axis.grid(alpha=0.3)
        brow.set_xlabel("seconds")
        figure.suptitle(_title(answer), fontsize=11)
        _draw_answer(figure, axes[:, 1], answer)


def plot_conversation(answers, path):
    """
    Draw each speaker's answers over the conversation's time.

    Args:
        answers (`list[dict]`): of `read_conversation`.
        path (`str` or `Path`): where the picture goes.
    """
    labels = sorted({name for turn in answers for name in turn.get("probabilities", {})})
    speakers = list(dict.fromkeys(turn["speaker"] or "" for turn in answers))
    with _figure(path, rows=len(speakers), width=11, height=1.2 + 2.2 * len(speakers), columns=1) as (figure, axes):
        for axis, speaker in zip(axes[:, 0], speakers, strict=True):
            for turn in answers:
                if (turn["speaker"] or "") != speaker:
                    continue
                middle, width = (turn["start"] + turn["end"]) / 2, turn["end"] - turn["start"]
                if "probabilities" in turn:
                    bottom = 0.0
                    for index, name in enumerate(labels):
                        share = turn["probabilities"].get(name, 0.0)
                        axis.bar(middle, share, width, bottom=bottom, color=f"C{index % 10}", edgecolor="white")
                        bottom += share
                    axis.text(middle, 1.02, turn["label"], ha="center", va="bottom", fontsize=8)
                elif turn.get("value") is not None:
                    axis.bar(middle, turn["value"], width, yerr=turn.get("spread"), color="C0", alpha=0.7)
            axis.axhline(0, color="black", lw=0.5)
            axis.set(ylabel=speaker, xlim=(0, max(turn["end"] for turn in answers)))
            if labels:
                axis.set_ylim(0, 1.2)
        axes[-1, 0].set_xlabel("seconds")
        if labels:
            from matplotlib.patches import Patch

            colors = [Patch(color=f"C{index % 10}", label=name) for index, name in enumerate(labels)]
            figure.legend(handles=colors, ncols=min(8, len(labels)), frameon=False, loc="outside upper center")


def pitch_of(samples, step=0.02, window=0.05):
    """
    Pitch by autocorrelation.

    Args:
        samples (`np.ndarray` float32 [n]): at 16 kHz.
        step, window (`float`): seconds.

    Returns:
        `np.ndarray` float64 [time]: Hz, NaN where the sound has none.
    """
    length, hop = round(window * RATE), round(step * RATE)
    if len(samples) < length:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop].astype(np.float64)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(length)
    size = 2 ** int(np.ceil(np.log2(2 * length)))

    def correlation(values):
        return np.fft.irfft(np.abs(np.fft.rfft(values, size)) ** 2)[..., :length]

    # the window's own correlation falls with the lag, whatever the sound
    periodic = correlation(frames) / (correlation(np.hanning(length)) + 1e-9)
    strength = periodic / np.maximum(periodic[:, :1], 1e-9)
    first, last = int(RATE / HIGHEST_PITCH), min(int(RATE / LOWEST_PITCH), length - 1)
    lags = first + strength[:, first:last].argmax(axis=1)
    # of peaks that are about as high, the shortest lag is the pitch, the others its multiples
    for divisor in range(8, 1, -1):
        shorter = np.maximum(np.round(lags / divisor).astype(int), 1)
        good = (shorter >= first) & (
            strength[np.arange(len(lags)), shorter] > 0.85 * strength[np.arange(len(lags)), lags]
        )
        lags = np.where(good, shorter, lags)
    voiced = (strength[np.arange(len(lags)), lags] > 0.5) & (np.sqrt((frames**2).mean(axis=1)) > 1e-3)
    return np.where(voiced, RATE / lags, np.nan)


def _curves(clip, reader):
    """Times and values of what is drawn, by name."""
    content = clip.read() if hasattr(clip, "read") else clip
    loudness, stored, resampler = Loudness(), StoredSound(), None
    face = FaceGeometry(reader.model("face"), FRAME_RATE, DEFAULT_FRONT_ENDS["vision"].get("face", "largest"))
    with Clip(content) as opened:
        for piece in opened.pieces(frame_rate=FRAME_RATE):
            if not isinstance(piece, Sound):
                face.add(piece)
                continue
            if resampler is None:
                resampler, start = Resampler(piece.sampling_rate), piece.start
            sound = Sound(start, resampler.add(piece.samples), RATE)
            loudness.add(sound)
            stored.add(sound)
        seconds = opened.seconds
    samples = stored.read(0, stored.num_samples)
    stored.close()
    values, pitch = loudness.values, pitch_of(samples)
    curves = {
        "seconds": seconds,
        "loudness": (loudness.start + loudness.step * np.arange(len(values)), 20 * np.log10(values + 1e-5)),
        "pitch": (loudness.start + 0.025 + 0.02 * np.arange(len(pitch)), pitch),
        "speech": speech_spans(loudness),
    }
    sequence, _ = face.finish()
    if sequence.values is not None:
        present = sequence.values[:, face.names.index("presence")] > 0
        times = sequence.start + sequence.step * np.arange(len(sequence.values))
        for name in (*MOUTH, *BROW):
            curves[name] = times, np.where(present, sequence.values[:, face.names.index(name)], np.nan)
    return curves


def _title(answer):
    words = answer.get("made_from", {}).get("transcript")
    return f"“{words}”" if words else ""


def _draw_answer(figure, places, answer):
    """The answer beside the curves: classes as bars, a number on its scale, and what it is without each modality."""
    grid = places[0].get_gridspec()
    for axis in places:
        axis.remove()
    axis = figure.add_subplot(grid[:2, 1])
    if "probabilities" in answer:
        names = sorted(answer["probabilities"], key=answer["probabilities"].get)
        axis.barh(names, [answer["probabilities"][name] for name in names], color="C0")
        axis.set(xlim=(0, 1), title="answer")
    elif answer.get("value") is not None:
        axis.barh([""], [answer["value"]], xerr=answer.get("spread"), color="C0")
        axis.axvline(0, color="black", lw=0.5)
        axis.set(title=f"answer {answer['value']:+.2f}")
    else:
        axis.set(title=answer.get("label") or "no answer")
    if "without" in answer:
        axis = figure.add_subplot(grid[2:, 1])
        called = {"text": "words", "audio": "voice", "vision": "face"}
        names = list(answer["without"])
        axis.barh([called[name] for name in names], [answer["without"][name].get("difference", 0) for name in names])
        axis.axvline(0, color="black", lw=0.5)
        axis.set(title="what it adds")


@contextmanager
def _figure(path, rows, width, height, columns=2):
    """A figure and its axes [rows, columns], written to `path`, whole or not at all, when the block ends well."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    # no pyplot: it keeps figures in one place for all threads
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = (3, 1) if columns == 2 else (1,)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    yield figure, axes
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix or ".png")
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=120, format=(path.suffix or ".png")[1:])
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
