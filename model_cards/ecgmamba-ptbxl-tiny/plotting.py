"""An ECG as cardiologists read it: on millimetre paper, 25 mm/s and 10 mm/mV, with its findings above it."""

import bisect
import math
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .measurements import as_line
from .recording import open_recording
from .statements import in_words

MILLIMETRES_PER_SECOND = 25.0
MILLIMETRES_PER_MILLIVOLT = 10.0
PAGE_SECONDS = 10.0

# the classic page: three rows of four leads, one after the other in time, above a rhythm strip
CLASSIC_ROWS = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM_LEAD = "II"

# millimetres on the page
PAGE_WIDTH = 284.0
MARGIN = 10.0
CALIBRATION_WIDTH = 14.0
LEAST_ROW_RISE, MOST_ROW_RISE = 11.0, 40.0
GAP_BETWEEN_ROWS = 3.0
LABEL_HEIGHT = 3.5
LINE_HEIGHT = 4.6

PAPER, FINE_LINE, BOLD_LINE = "#fffaf9", "#f7dfdc", "#ecb5af"
INK, FAINT_INK, FOUND, LOOKED_AT = "#16181d", "#6b7280", "#b42318", "#2563eb"

MOST_FINDINGS = 8
MOST_TIMELINE_ROWS = 4
MOST_NOTE_LINES = 4


@dataclass(frozen=True)
class Strip:
    """One lead from `begin` to `end` seconds of the page, drawn in `row`, `left` seconds from the row's first."""

    lead: str
    row: int
    left: float
    begin: float
    end: float


def plot_recording(
    recording,
    findings=None,
    attribution=None,
    path=None,
    *,
    timeline=None,
    notes=None,
    refused=None,
    measurements=None,
    start=None,
    dpi=150,
):
    """
    Draws up to 10 s of a recording on ECG paper, true to scale: 25 mm/s and 10 mm/mV at the file's own resolution.

    Twelve leads take the classic page (four columns, lead II below as the rhythm strip; two columns where the
    recording is shorter than 5 s), other sets of leads a row each. Each lead is centred on its median, as an
    electrocardiograph's coupling would; deflections beyond 40 mm are cut off at the paper's edge.

    Args:
        recording: a `RecordingFile`, a `Recording`, or anything that `open_recording` reads.
        findings (`list[dict]`, *optional*): as the pipeline returns them: label, score, present.
        attribution (`Attribution`, *optional*): shaded behind the leads.
        path (`str` or `Path`, *optional*): where to save the picture; its suffix says how (.png, .pdf, .svg).
        timeline (`list[dict]`, *optional*): findings of a long recording, drawn over its whole length.
        notes (`list[str]`, *optional*): what the reader should know; the recording's own notes by default.
        refused (`str`, *optional*): why nothing is found in it, as the pipeline says.
        measurements (`dict`, *optional*): as the pipeline returns them: a line of the header.
        start (`float`, *optional*): first second to draw; by default where the attribution is, else 0.
        dpi (`int`): dots per inch of a .png.

    Returns:
        `matplotlib.figure.Figure`, independent of pyplot.

    Raises:
        ValueError: if start lies outside the recording. ImportError: without matplotlib.
    """
    matplotlib = import_matplotlib()
    # as remote code this file may meet a RecordingFile of another copy of its module
    source = recording if hasattr(recording, "num_samples") else open_recording(recording)
    if start is None:
        start = 0.0 if attribution is None else attribution.start
        start = max(0.0, min(start, source.duration - PAGE_SECONDS))
    if not 0 <= start < source.duration:
        raise ValueError(f"start is {start} s; expected 0 to {source.duration:.1f} s, the length of {source.name}")
    rate = source.sampling_rate
    page = source.read(round(start * rate), min(source.num_samples, round((start + PAGE_SECONDS) * rate)))
    millimetres = MILLIMETRES_PER_MILLIVOLT * centred(page.signal)
    seconds = millimetres.shape[1] / rate
    strips = lay_out(page.leads, seconds)
    rows = [[strip for strip in strips if strip.row == row] for row in range(strips[-1].row + 1)]
    extents = [row_extent(row, page.leads, millimetres, rate) for row in rows]

    not_drawn = [lead for lead in page.leads if lead not in {strip.lead for strip in strips}]
    notes = list(page.notes if notes is None else notes)
    notes += [f"not drawn: {', '.join(not_drawn)}"] if not_drawn else []
    note_lines = wrapped(notes)
    timeline = timeline if seconds < source.duration else ()  # a page that shows it all needs no map
    timeline_labels = list(dict.fromkeys(entry["label"] for entry in timeline or ()))[:MOST_TIMELINE_ROWS]
    findings = (
        None if findings is None else sorted(findings, key=lambda found: (not found["present"], -found["score"]))
    )

    # heights from the top: title, findings, timeline, paper, footer
    finding_rows = 0 if findings is None else math.ceil(min(len(findings), MOST_FINDINGS) / columns_of(findings)) or 1
    measured_height = 0 if measurements is None else LINE_HEIGHT
    header = (
        16
        + measured_height
        + LINE_HEIGHT * finding_rows
        + (4 + LINE_HEIGHT * len(timeline_labels) if timeline_labels else 0)
    )
    footer = 8 + 3.6 * len(note_lines)
    paper_height = 5 * math.ceil((sum(rise + depth for rise, depth in extents) + GAP_BETWEEN_ROWS * len(rows)) / 5)
    height = header + paper_height + footer
    figure = matplotlib.figure.Figure(figsize=(PAGE_WIDTH / 25.4, height / 25.4), dpi=dpi, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # in millimetres, from the lower left corner
    axes.set_axis_off()

    draw_title(axes, height - 8, source, page, start, seconds)
    top = height - 14 - measured_height
    if measurements is not None:
        axes.text(MARGIN, height - 8 - LINE_HEIGHT, as_line(measurements), size=8.5, color=INK)
    if findings is not None:
        draw_findings(axes, top, findings, refused)
    if timeline_labels:
        draw_timeline(axes, top - LINE_HEIGHT * finding_rows - 2, timeline, timeline_labels, source, start, seconds)
    draw_paper(axes, MARGIN - 5, footer, PAGE_WIDTH - 2 * MARGIN + 10, paper_height)
    baseline = footer + paper_height
    for row, (rise, depth) in zip(rows, extents, strict=True):
        baseline -= rise + GAP_BETWEEN_ROWS / 2
        draw_row(axes, row, baseline, (rise, depth), page.leads, millimetres, rate, attribution, start)
        baseline -= depth + GAP_BETWEEN_ROWS / 2
    draw_footer(axes, footer, note_lines, attribution)
    axes.set(xlim=(0, PAGE_WIDTH), ylim=(0, height), aspect="auto")
    if path is not None:
        save_whole(figure, Path(path), dpi)
    return figure


def import_matplotlib():
    try:
        import matplotlib.figure
        import matplotlib.font_manager
        import matplotlib.textpath
    except ImportError as error:
        raise ImportError("drawing a recording needs matplotlib: pip install matplotlib") from error
    return matplotlib


def centred(signal):
    """[leads, time] in mV minus each lead's median; a lead without a single sample stays NaN."""
    millivolts = np.asarray(signal, dtype=np.float32)
    has_samples = np.isfinite(millivolts).any(axis=1)
    medians = np.zeros(len(millivolts), dtype=np.float32)
    medians[has_samples] = np.nanmedian(millivolts[has_samples], axis=1)
    return millivolts - medians[:, None]


def lay_out(leads, seconds):
    """Where each lead goes on the page: the classic grid for twelve leads, otherwise a row for each lead."""
    if not {lead for row in CLASSIC_ROWS for lead in row} <= set(leads):
        return [Strip(lead, row, 0.0, 0.0, seconds) for row, lead in enumerate(leads)]
    if seconds <= PAGE_SECONDS / 2:
        # two columns of six rows, both over the whole time
        columns = [[row[0] for row in CLASSIC_ROWS] + [row[1] for row in CLASSIC_ROWS]]
        columns.append([row[2] for row in CLASSIC_ROWS] + [row[3] for row in CLASSIC_ROWS])
        return [
            Strip(lead, row, column * PAGE_SECONDS / 2, 0.0, seconds)
            for row in range(6)
            for column, lead in enumerate(names[row] for names in columns)
        ]
    quarter = seconds / 4
    strips = [
        Strip(lead, row, column * quarter, column * quarter, (column + 1) * quarter)
        for row, names in enumerate(CLASSIC_ROWS)
        for column, lead in enumerate(names)
    ]
    return [*strips, Strip(RHYTHM_LEAD, len(CLASSIC_ROWS), 0.0, 0.0, seconds)]


def strip_samples(strip, leads, millimetres, rate):
    """The strip's samples in mm, one beyond its end so that neighbouring strips meet."""
    return millimetres[leads.index(strip.lead), round(strip.begin * rate) : round(strip.end * rate) + 1]


def row_extent(row, leads, millimetres, rate):
    """How far a row reaches above and below its baseline, in mm, lead names included."""
    rise = depth = LEAST_ROW_RISE
    for strip in row:
        samples = strip_samples(strip, leads, millimetres, rate)
        if np.isfinite(samples).any():
            rise = max(rise, np.nanmax(samples), label_height(samples, rate) + LABEL_HEIGHT)
            depth = max(depth, -np.nanmin(samples))
    return min(rise, MOST_ROW_RISE), min(depth, MOST_ROW_RISE)


def label_height(samples, rate):
    """Above the trace where the lead's name stands (its first 10 mm), in mm from the baseline."""
    beginning = samples[: math.ceil(rate * 10 / MILLIMETRES_PER_SECOND)]
    highest = np.nanmax(beginning) if np.isfinite(beginning).any() else 0.0
    return float(np.clip(highest + 1, 3, MOST_ROW_RISE - LABEL_HEIGHT))


def draw_paper(axes, left, bottom, width, height):
    axes.fill(
        [left, left + width, left + width, left], [bottom, bottom, bottom + height, bottom + height], PAPER, zorder=1
    )
    for spacing, colour, line_width in ((1, FINE_LINE, 0.35), (5, BOLD_LINE, 0.55)):
        columns, lines = np.arange(0, width + 0.1, spacing), np.arange(0, height + 0.1, spacing)
        axes.vlines(left + columns, bottom, bottom + height, colors=colour, linewidths=line_width, zorder=1)
        axes.hlines(bottom + lines, left, left + width, colors=colour, linewidths=line_width, zorder=1)


def draw_row(axes, row, baseline, extent, leads, millimetres, rate, attribution, start):
    rise, depth = extent
    origin = MARGIN + CALIBRATION_WIDTH
    # 1 mV for 200 ms
    pulse = (
        MARGIN + np.array([0, 2, 2, 7, 7, 9]),
        baseline + MILLIMETRES_PER_MILLIVOLT * np.array([0, 0, 1, 1, 0, 0]),
    )
    axes.plot(*pulse, color=INK, linewidth=0.8, solid_joinstyle="miter")
    for strip in row:
        samples = strip_samples(strip, leads, millimetres, rate)
        left = origin + MILLIMETRES_PER_SECOND * strip.left
        if attribution is not None and strip.lead in attribution.leads:
            shade(axes, attribution, strip, start, left, baseline - depth, baseline + rise)
        x = left + MILLIMETRES_PER_SECOND * np.arange(len(samples)) / rate
        trace = baseline + np.clip(samples, -depth, rise)
        axes.plot(x, trace, color=INK, linewidth=0.75, solid_joinstyle="round")
        if strip.left > 0:
            axes.vlines(left, baseline - 3, baseline + 3, colors=INK, linewidths=0.6)
        axes.text(left + 1, baseline + label_height(samples, rate), strip.lead, size=8, weight="bold", color=INK)


def shade(axes, attribution, strip, start, left, bottom, top):
    """Blue behind one strip, the more opaque the more the model looked there."""
    rate = attribution.sampling_rate
    weights = attribution.weights[attribution.leads.index(strip.lead)]
    times = start + np.arange(strip.begin, strip.end, 1 / rate)
    opacity = np.interp(times, attribution.start + np.arange(len(weights)) / rate, weights, left=0, right=0)
    colours = np.empty((1, len(times), 4), dtype=np.float32)
    colours[..., :3] = [int(LOOKED_AT[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    colours[..., 3] = 0.45 * opacity
    right = left + MILLIMETRES_PER_SECOND * (strip.end - strip.begin)
    axes.imshow(colours, extent=(left, right, bottom, top), aspect="auto", interpolation="bilinear", zorder=1.5)


def draw_title(axes, y, source, page, start, seconds):
    axes.text(MARGIN, y, shortened(source.name, 130, 12), size=12, weight="bold", color=INK)
    span = f"{seconds:.1f} s"
    if seconds + 0.05 < source.duration:
        span = f"{clock(start)} to {clock(start + seconds)} of {clock(source.duration)}"
    leads = f"{len(page.leads)} lead{'s' if len(page.leads) > 1 else ''}"
    facts = f"{span}    {source.sampling_rate:g} Hz    {leads}"
    axes.text(PAGE_WIDTH - MARGIN, y, facts, size=8.5, color=FAINT_INK, ha="right")


def draw_findings(axes, top, findings, refused=None):
    """Columns of score, bar and label; what is present comes first, in red. The reason of a refusal stands above
    them or in their place."""
    if refused is not None:
        text = f"{'in doubt' if findings else 'no findings'}: {refused}"
        text = shortened(text, PAGE_WIDTH - 2 * MARGIN, 8.5, "bold")
        axes.text(MARGIN, top - 3.2 if not findings else top + 1.4, text, size=8.5, weight="bold", color=FOUND)
    elif not findings:
        axes.text(MARGIN, top - 3.2, "no findings", size=8.5, color=FAINT_INK)
    columns = columns_of(findings)
    column_width = (PAGE_WIDTH - 2 * MARGIN) / columns
    shown = findings[:MOST_FINDINGS]
    for place, found in enumerate(shown):
        left = MARGIN + column_width * (place % columns)
        y = top - LINE_HEIGHT * (place // columns) - 3.2
        colour, weight = (FOUND, "bold") if found["present"] else (FAINT_INK, "normal")
        if found["present"] is None:  # a number, not a probability
            label = axes.text(left, y, shortened(found["label"], column_width - 16, 8.5), size=8.5, color=INK)
            axes.annotate(f"  {found['score']:.3g}", (1, 0), xycoords=label, size=8.5, weight="bold", color=INK)
            continue
        axes.text(left + 9, y, f"{found['score']:.0%}", size=8.5, weight=weight, color=colour, ha="right")
        axes.barh(y + 1.1, 12, 1.8, left=left + 11, color="#e5e7eb")
        axes.barh(y + 1.1, 12 * min(max(found["score"], 0), 1), 1.8, left=left + 11, color=colour)
        label = shortened(spelled_out(found["label"]), column_width - 29, 8.5, weight)
        axes.text(left + 25, y, label, size=8.5, weight=weight, color=colour)
    if len(findings) > len(shown):
        more = f"and {len(findings) - len(shown)} more labels with lower scores"
        axes.text(PAGE_WIDTH - MARGIN, top + 1.4, more, size=7, color=FAINT_INK, ha="right")


def draw_timeline(axes, top, timeline, labels, source, start, seconds):
    """Each label's stretches over the whole recording; the grey band is what the page shows."""
    left, width = MARGIN + 46, PAGE_WIDTH - 2 * MARGIN - 46
    bottom = top - LINE_HEIGHT * len(labels)
    page_left, page_width = left + width * start / source.duration, width * seconds / source.duration
    axes.barh((top + bottom) / 2, max(page_width, 0.6), top - bottom, left=page_left, color="#cbd5e1")
    for row, label in enumerate(labels):
        y = top - LINE_HEIGHT * (row + 0.5)
        axes.text(MARGIN, y, shortened(spelled_out(label), 44, 8), size=8, color=INK, va="center")
        axes.hlines(y, left, left + width, colors="#e5e7eb", linewidths=0.8)
        for entry in timeline:
            if entry["label"] == label:
                begin, end = (width * entry[edge] / source.duration for edge in ("start", "end"))
                axes.barh(y, max(end - begin, 0.4), 2.2, left + begin, color=FOUND, zorder=3)
    for share in (0, 0.25, 0.5, 0.75, 1):
        axes.text(left + width * share, bottom - 2.6, clock(share * source.duration), size=6.5, color=FAINT_INK,
                  ha={0: "left", 1: "right"}.get(share, "center"))  # fmt: skip


def draw_footer(axes, footer, note_lines, attribution):
    axes.text(MARGIN, footer - 4.5, "25 mm/s    10 mm/mV", size=8, weight="bold", color=INK)
    if attribution is not None:
        axes.barh(footer - 3.4, 6, 2.4, left=MARGIN + 50, color=LOOKED_AT, alpha=0.45)
        meaning = f"where the model looked for {shortened(spelled_out(attribution.label), 90, 8)}"
        axes.text(MARGIN + 58, footer - 4.5, meaning, size=8, color=INK)
    caution = "research software, not a medical device"
    axes.text(PAGE_WIDTH - MARGIN, footer - 4.5, caution, size=7, color=FAINT_INK, ha="right")
    for line, text in enumerate(note_lines):
        axes.text(MARGIN, footer - 8.8 - 3.6 * line, text, size=7, color=FAINT_INK)


def spelled_out(label):
    """AFIB: atrial fibrillation."""
    words, group = in_words(label)
    return label if group is None else f"{label}: {words}"


def wrapped(notes):
    """Notes as lines that fit the page's width; what would be too many is counted."""
    lines = [line for note in notes for line in textwrap.wrap(note, 190, subsequent_indent="   ")]
    if len(lines) > MOST_NOTE_LINES:
        lines = [*lines[: MOST_NOTE_LINES - 1], f"and {len(lines) - MOST_NOTE_LINES + 1} more lines of notes"]
    return lines


def columns_of(findings):
    """In how many columns the findings stand: four, or as few, down to two, as their names need to stand whole."""
    shown = findings[:MOST_FINDINGS]
    for columns in (4, 3):
        width = (PAGE_WIDTH - 2 * MARGIN) / columns - 29
        names = [(spelled_out(found["label"]), "bold" if found["present"] else "normal") for found in shown]
        if all(shortened(name, width, 8.5, weight) == name for name, weight in names):
            return columns
    return 2


def shortened(text, width, size, weight="normal"):
    """The text, cut to `width` mm at `size` points."""
    matplotlib = import_matplotlib()
    font = matplotlib.font_manager.FontProperties(weight=weight)

    def fits(candidate):
        outline = matplotlib.textpath.TextPath((0, 0), candidate, size=size, prop=font)
        return outline.get_extents().width * 25.4 / 72 <= width

    if fits(text := text[:400]):
        return text
    length = bisect.bisect_left(range(len(text)), True, key=lambda length: not fits(text[:length] + "…")) - 1
    return text[: max(length, 0)].rstrip() + "…"


def clock(seconds):
    """0:05, 12:30, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def save_whole(figure, path, dpi):
    """Writes beside the target and renames, so that an interrupted run leaves no half picture."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        figure.savefig(temporary, dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
