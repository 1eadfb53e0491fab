"""A Space: upload an ECG, read what the model finds in it, look at it on ECG paper. No upload is kept."""

import base64
import html
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
from huggingface_hub import hf_hub_download
from transformers import pipeline

# publishing fills these in; the variables of the Space, or of a shell, win
MODEL_ID = os.environ.get("MODEL_ID", "THIS_REPOSITORY")
REVISION = os.environ.get("REVISION", "main" if "MODEL_ID" in os.environ else "THIS_REVISION")

VIEWER = (Path(__file__).parent / "viewer.html").read_text(encoding="utf-8")
MOST_SAMPLES = 2_000_000  # that the page shows, of all leads
MILLIVOLTS = 0.001  # a count of the page's
WORDS = {
    **{"NORM": "Normal ECG", "MI": "Myocardial infarction", "STTC": "ST/T change", "CD": "Conduction disturbance"},
    **{"HYP": "Hypertrophy", "AFIB": "Atrial fibrillation", "AF": "Atrial fibrillation", "AFLT": "Atrial flutter"},
    **{"SR": "Sinus rhythm", "STACH": "Sinus tachycardia", "SBRAD": "Sinus bradycardia", "SARRH": "Sinus arrhythmia"},
    **{"I-AVB": "First-degree AV block", "1AVB": "First-degree AV block", "LBBB": "Left bundle branch block"},
    **{
        "RBBB": "Right bundle branch block",
        "CLBBB": "Complete left bundle branch block",
        "PVC": "Ventricular ectopics",
    },
    **{"CRBBB": "Complete right bundle branch block", "PAC": "Atrial ectopics", "LVH": "Left ventricular hypertrophy"},
    **{"STD": "ST depression", "STE": "ST elevation", "Normal": "Normal ECG", "PACE": "Paced rhythm"},
}
DISCLAIMER = (
    "**Not a medical device.** A research model reads one recording, knows nothing of the patient, and is wrong at "
    "times. Do not diagnose or treat by it. Files are deleted within two minutes; nothing is kept."
)

ecg = pipeline("ecg-classification", model=MODEL_ID, revision=REVISION, trust_remote_code=True)
FORMATS = ", ".join(ecg.feature_extractor.formats)


def example():
    folder = Path(MODEL_ID)
    return folder / "example.csv" if folder.is_dir() else hf_hub_download(MODEL_ID, "example.csv", revision=REVISION)


def read(files, sampling_rate=None):
    """
    Uploaded files (a recording; WFDB's header with its signal files; a zip archive) -> the page, the findings, what
    was done to the file.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            # a header finds its signal files beside it, under their own names
            paths = [Path(shutil.copy(file, Path(folder) / Path(file).name)) for file in files or ()]
            return show(find_recording(paths), sampling_rate)
    except (ValueError, OSError) as error:
        text = html.escape(in_one_line(error))
        return "", f"<p role='alert'><strong>This could not be read.</strong> {text}</p>", ""


def read_and_clear(files, sampling_rate=None):
    """As `read`; the field for files is empty then, for the next."""
    return *read(files, sampling_rate), None


def find_recording(paths):
    if not paths:
        raise ValueError(f"no file; upload a recording: {FORMATS}")
    headers = [path for path in paths if path.suffix.lower() == ".hea"]
    if len(headers) > 1 or (not headers and len(paths) > 1):
        raise ValueError(
            f"{len(paths)} files; expected one recording: WFDB's header with its signal files, or one file"
        )
    (path,) = headers or paths
    return path.read_bytes() if path.suffix.lower() == ".zip" else path


def read_ecg(recording: str, sampling_rate: float | None = None) -> dict:
    """
    Read what an ECG shows: findings with their scores and thresholds, over time for long recordings. Research only.

    Args:
        recording: a file: EDF, CSV, NumPy, MATLAB, HDF5, or a zip archive of a WFDB record's header and signal files.
        sampling_rate: in Hz, of a file that does not state it.

    Returns:
        findings (label, score, present), timeline, notes on what was done to the file, and refused: why there are
        none.
    """
    if not recording:
        raise gr.Error("there is no recording")
    try:
        path = Path(recording)
        source = path.read_bytes() if path.suffix.lower() == ".zip" else path
        return ecg(ecg.preprocess(source, sampling_rate=sampling_rate or None, trusted=False)[0].recording)
    except (ValueError, OSError) as error:
        raise gr.Error(in_one_line(error)) from None


def in_one_line(error):
    # the server's folders are nobody's business
    return re.sub(r"(?:/[\w.~+-]+)+/", "", " ".join(str(error).split()))


def read_example():
    return show(example(), None)


def show(recording, sampling_rate):
    opened = ecg.preprocess(recording, sampling_rate=sampling_rate or None, trusted=False)[0].recording
    result = ecg(opened)
    length = min(opened.num_samples, MOST_SAMPLES // len(opened.leads))
    signal = opened.read(0, length).signal
    step = max(1, int(opened.sampling_rate // 500))  # finer than a screen
    counts = np.where(np.isfinite(signal), np.clip(signal / MILLIVOLTS, -32767, 32767), -32768)[:, ::step]
    data = {
        "leads": list(opened.leads),
        "sampling_rate": opened.sampling_rate / step,
        "duration": opened.duration,
        "millivolts": MILLIVOLTS,
        "signals": [base64.b64encode(row.astype("<i2").tobytes()).decode() for row in counts],
        "result": result,
        "words": {label: words(label) for label in ecg.model.config.label2id},
    }
    notes = [
        f"{opened.duration:.1f} s, {opened.sampling_rate:g} Hz, {len(opened.leads)} leads: {', '.join(opened.leads)}",
        *result["notes"],
    ]
    if length < opened.num_samples:
        notes.append(f"the page shows the first {length / opened.sampling_rate:.0f} s; the findings are of all")
    page = VIEWER.replace("/*DATA*/null", json.dumps(data).replace("</", "<\\/"))
    frame = f'<iframe title="The ECG on paper" srcdoc="{html.escape(page)}" allow="fullscreen" class="page"></iframe>'
    return frame, findings(result), "\n".join(f"- {html.escape(note)}" for note in notes)


def findings(result):
    """Those that are there in words, then all scores with their thresholds."""
    if result.get("refused"):
        return f"<p role='alert'><strong>No findings.</strong> {html.escape(result['refused'])}</p>"
    config = ecg.model.config
    thresholds = dict(zip(config.label2id, config.thresholds or [0.5] * config.num_labels, strict=True))
    present = [words(one["label"]) for one in result["findings"] if one["present"]]
    rows = "".join(
        f"<tr><td>{'✓ ' if one['present'] else ''}{html.escape(words(one['label']))}</td>"
        f"<td>{html.escape(one['label'])}</td><td>{one['score']:.0%}</td><td>{thresholds[one['label']]:.0%}</td>"
        f"<td>{'reaches its threshold' if one['present'] else 'below its threshold'}</td></tr>"
        for one in result["findings"]
    )
    headline = html.escape(", ".join(present)) or "No finding above its threshold"
    return (
        f"<h2>{headline}</h2><table><thead><tr><th>Finding</th><th>Code</th><th>Score</th><th>Threshold</th>"
        f"<th>Why</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def words(label):
    return WORDS.get(label, label)


# Gradio's own greys and blues are too pale to be read by everybody
THEME = gr.themes.Default(primary_hue="blue", secondary_hue="blue").set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    color_accent="*primary_700",
)
CSS = """
.dark { --color-accent: #93c5fd; }
.page { width: 100%; height: 760px; border: 0; }
@media (max-width: 600px) { .page { height: 1180px; } }
.findings h2 { margin: 4px 0; } .findings table { width: 100%; border-collapse: collapse; }
.findings td, .findings th { text-align: left; padding: 3px 8px 3px 0; border-bottom: 1px solid #8884; }
"""

# gradio keeps uploads of equal content in one place, so that none can be deleted while others may be reading it
with gr.Blocks(title="ECGMamba", delete_cache=(30, 60), analytics_enabled=False) as demo:
    gr.Markdown(f"# ECGMamba: what does this ECG show?\n{DISCLAIMER}")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(
                label="Your recording",
                file_count="multiple",
                height=150,
            )
            gr.Markdown(f"{FORMATS}. Files of WFDB together, or a zip of them.")
            with gr.Accordion("The file does not state its sampling rate", open=False):
                rate = gr.Number(label="Sampling rate in Hz", value=None)
            with gr.Row():
                go = gr.Button("Read it", variant="primary")
                again = gr.Button("The example")
        with gr.Column(scale=2, min_width=320):
            found = gr.HTML(elem_classes="findings")
    page = gr.HTML()
    gr.Markdown("### What was done to the file")
    done = gr.Markdown()
    outputs = [page, found, done]
    go.click(read_and_clear, [upload, rate], [*outputs, upload], api_name=False, concurrency_limit=2)
    again.click(read_example, None, outputs, api_name=False, concurrency_limit=2)
    demo.load(read_example, None, outputs, api_name=False, concurrency_limit=2)
    # for programs, and as a tool of an MCP client
    with gr.Row(visible=False):
        one = gr.File(label="recording", type="filepath")
        hertz = gr.Number(label="sampling_rate", value=None)
        answer = gr.JSON(label="answer")
        ask = gr.Button("ask")
    ask.click(read_ecg, [one, hertz], answer, api_name="read_ecg", concurrency_limit=2)

if __name__ == "__main__":
    demo.launch(css=CSS, theme=THEME, max_file_size="128mb", mcp_server=True)
