"""The picture: true to scale, every lead on the page, nothing outside of it, and a file that is whole."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import AxesImage
from matplotlib.text import Text

from hf_ecgmamba.attribution import Attribution
from hf_ecgmamba.measurements import FIELDS
from hf_ecgmamba.plotting import PAGE_WIDTH, plot_recording, spelled_out
from hf_ecgmamba.recording_channels import STANDARD_LEADS, Recording

FINDINGS = [
    {"label": "NORM", "score": 0.12, "present": False},
    {"label": "AFIB", "score": 0.93, "present": True},
]


def heart(leads=STANDARD_LEADS, seconds=10.0, rate=500.0, notes=()):
    """A 1 mV spike of 20 ms each second in every lead."""
    time = np.arange(round(seconds * rate)) / rate
    beat = np.where(np.abs(time % 1 - 0.5) < 0.01, 1.0, 0.0).astype(np.float32)
    return Recording(np.tile(beat, (len(leads), 1)), tuple(leads), rate, "heart", tuple(notes))


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def traces(figure):
    """Data of the lines on the page that are no calibration pulse, in mm."""
    lines = [line.get_xydata() for line in figure.axes[0].lines]
    return [line for line in lines if len(line) != 6]


def test_scale_is_25_mm_per_second_and_10_mm_per_millivolt():
    figure = plot_recording(heart())
    width, height = figure.get_size_inches() * 25.4
    axes = figure.axes[0]
    # the axes fill the figure, one unit a millimetre
    assert axes.get_position().bounds == (0, 0, 1, 1)
    assert axes.get_xlim() == (0, pytest.approx(width)) and axes.get_ylim() == (0, pytest.approx(height))
    assert width == pytest.approx(PAGE_WIDTH)
    rhythm = traces(figure)[-1]
    assert np.ptp(rhythm[:, 0]) == pytest.approx(250, abs=0.1)
    assert np.ptp(rhythm[:, 1]) == pytest.approx(10, abs=1e-3)
    pulse = axes.lines[0].get_xydata()
    assert np.ptp(pulse[:, 1]) == pytest.approx(10) and pulse[3, 0] - pulse[2, 0] == pytest.approx(5)


def test_classic_page_shows_each_lead_for_a_quarter_and_lead_two_throughout():
    figure = plot_recording(heart())
    names = [text for text in texts(figure) if text in STANDARD_LEADS]
    assert sorted(names) == sorted([*STANDARD_LEADS, "II"])
    assert sorted(round(np.ptp(trace[:, 0]) / 25, 1) for trace in traces(figure)) == [2.5] * 12 + [10.0]


@pytest.mark.parametrize(
    ("leads", "seconds", "rows"),
    [
        (("II",), 10.0, 1),
        (("I", "II", "V2"), 10.0, 3),
        (STANDARD_LEADS, 4.0, 6),
        (STANDARD_LEADS, 7.0, 4),
        (("V1",), 0.01, 1),
    ],
)
def test_other_leads_and_lengths(leads, seconds, rows):
    figure = plot_recording(heart(leads, seconds))
    baselines = {round(float(line.get_ydata()[0]), 3) for line in figure.axes[0].lines if len(line.get_xdata()) == 6}
    assert len(baselines) == rows
    assert set(leads) <= set(texts(figure))


def test_large_beats_stay_on_the_paper_and_rows_apart():
    recording = heart()
    recording.signal *= np.linspace(1, 9, 12, dtype=np.float32)[:, None]
    figure = plot_recording(recording)
    rows = {}
    for trace in traces(figure):
        rows.setdefault(round(float(np.median(trace[:, 1])), 2), []).append(trace)
    extents = sorted((min(t[:, 1].min() for t in row), max(t[:, 1].max() for t in row)) for row in rows.values())
    assert len(extents) == 4
    assert all(below[1] < above[0] for below, above in pairwise(extents))
    assert extents[0][0] > 0 and extents[-1][1] < figure.axes[0].get_ylim()[1]


def test_missing_samples_and_a_silent_lead_leave_gaps():
    recording = heart()
    recording.signal[3] = np.nan
    recording.signal[1, 1000:1200] = np.nan
    gaps = [np.isnan(trace[:, 1]).sum() for trace in traces(plot_recording(recording))]
    assert sorted(gaps)[-4:] == [0, 200, 200, 1251]


def test_findings_are_written_present_ones_first():
    written = texts(plot_recording(heart(notes=["lead III derived from I and II"]), FINDINGS))
    assert written.index("AFIB: atrial fibrillation") < written.index("NORM: normal ECG")
    assert {"93%", "12%", "lead III derived from I and II"} <= set(written)


def test_a_measured_number_has_no_bar():
    written = texts(plot_recording(heart(), [{"label": "age", "score": 63.4, "present": None}]))
    assert "age" in written and "  63.4" in written


def test_texts_stay_inside_the_page_however_long():
    findings = [
        {"label": f"{n} " + "left ventricular hypertrophy " * 5, "score": 1.0, "present": True} for n in range(40)
    ]
    timeline = [{"label": finding["label"], "start": 0, "end": 1, "score": 1.0} for finding in findings]
    recording = heart(seconds=60, notes=["a note that goes on " * 60] * 9)
    recording.name = "a name without an end " * 20
    figure = plot_recording(recording, findings, timeline=timeline)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in figure.findobj(Text):
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
    assert "and 32 more labels with lower scores" in texts(figure)


def test_shade_lies_where_the_model_looked():
    weights = np.zeros((1, 1000), dtype=np.float32)
    weights[0, 400:450] = 1
    figure = plot_recording(heart(("V2", "II")), FINDINGS, Attribution("AFIB", ("V2",), weights, 0.0, 100.0))
    (shade,) = figure.findobj(AxesImage)
    opacity = shade.get_array()[0, :, 3]
    left, right, _, _ = shade.get_extent()
    seconds = np.flatnonzero(opacity > 0.2) / len(opacity) * (right - left) / 25
    assert seconds.min() == pytest.approx(4, abs=0.05) and seconds.max() == pytest.approx(4.5, abs=0.05)
    assert "where the model looked for AFIB: atrial fibrillation" in texts(figure)


def test_long_recording_shows_the_chosen_span_and_its_timeline():
    timeline = [{"label": "AFIB", "start": 30.0, "end": 60.0, "score": 0.9}]
    figure = plot_recording(heart(("II",), 120), FINDINGS, timeline=timeline, start=40.0)
    # finding and row of the timeline
    assert sum(text.startswith("AFIB: atrial") for text in texts(figure)) == 2
    short = plot_recording(heart(("II",), 10), FINDINGS, timeline=timeline)
    assert sum(text.startswith("AFIB: atrial") for text in texts(short)) == 1
    assert "0:40 to 0:50 of 2:00    500 Hz    1 lead" in texts(figure)
    weights = np.ones((1, 1000), dtype=np.float32)
    figure = plot_recording(heart(("II",), 120), attribution=Attribution("AFIB", ("II",), weights, 75.0, 100.0))
    assert "1:15 to 1:25 of 2:00    500 Hz    1 lead" in texts(figure)


@pytest.mark.parametrize("start", [-1.0, 10.0, 1e9])
def test_start_outside_of_the_recording(start):
    with pytest.raises(ValueError, match=r"expected 0 to 10\.0 s"):
        plot_recording(heart(), start=start)


def test_saving_is_whole_and_at_the_scale(tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "ecg.png"
    plot_recording(heart(), FINDINGS, path=path, dpi=100)
    assert [file.name for file in tmp_path.iterdir()] == ["ecg.png"]
    assert imread(path).shape[1] == pytest.approx(PAGE_WIDTH / 25.4 * 100, abs=1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="nosuchformat"):
        plot_recording(heart(), path=tmp_path / "ecg.nosuchformat")
    assert [file.name for file in tmp_path.iterdir()] == ["ecg.png"] and path.read_bytes() == before


def test_pyplot_is_left_alone():
    code = (
        "import sys, numpy as np; from hf_ecgmamba import plotting\n"
        "from hf_ecgmamba.recording_channels import Recording\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plotting.plot_recording(Recording(np.zeros((1, 100), np.float32), ('II',), 100.0))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_record(shared_data, tmp_path):
    path = shared_data / "ecg" / "ptbxl500_pairs" / "records500" / "00000" / "00014_hr"
    figure = plot_recording(path, path=tmp_path / "real.svg")
    assert "10.0 s    500 Hz    12 leads" in texts(figure)
    assert (tmp_path / "real.svg").stat().st_size > 10_000


def test_measurements_are_a_line_of_the_header():
    measured = dict.fromkeys(FIELDS) | {"heart_rate_bpm": 71.6, "qrs_ms": 92.0, "axis_degrees": -12.3}
    (line,) = [text for text in texts(plot_recording(heart(), FINDINGS, measurements=measured)) if "QRS" in text]
    assert line.split("    ") == ["rate 72/min", "PR –", "QRS 92 ms", "QT –", "QTc –", "axis -12°", "SDNN –"]


@pytest.mark.parametrize("label", ["CLBBB", "AFIB", "STTC"])
def test_names_stand_whole_where_there_is_room(label):
    findings = [{"label": label, "score": 0.9, "present": True}, {"label": "NORM", "score": 0.1, "present": False}]
    shown = texts(plot_recording(heart(), findings))
    assert spelled_out(label) in shown and not any(text.endswith("…") for text in shown)
