"""A Space: upload a recording, see its findings on ECG paper. The variable MODEL_ID names the model."""

import os
import shutil
import tempfile
from pathlib import Path

import gradio
from transformers import pipeline

SUFFIXES = (".hea", ".csv", ".tsv", ".txt", ".npy", ".npz", ".mat", ".h5", ".hdf5", ".edf", ".bdf")

# publishing fills these in; the variables of the Space, or of a shell, win
MODEL_ID = os.environ.get("MODEL_ID", "THIS_REPOSITORY")
REVISION = os.environ.get("REVISION", "main" if "MODEL_ID" in os.environ else "THIS_REVISION")

ecg = pipeline("ecg-classification", model=MODEL_ID, revision=REVISION, trust_remote_code=True)


def read(files, sampling_rate):
    """Uploaded files -> scores for the label widget, rows for the timeline, path of the picture, notes."""
    with tempfile.TemporaryDirectory() as folder:
        # a header finds its signal files beside it, under their own names
        paths = [Path(shutil.copy(file, Path(folder) / Path(file).name)) for file in files or ()]
        recording = next((path for suffix in SUFFIXES for path in paths if path.suffix.lower() == suffix), None)
        if recording is None:
            raise gradio.Error(f"Upload one recording: {', '.join(SUFFIXES)}; WFDB with its signal files.")
        try:
            picture = Path(tempfile.mkdtemp()) / "ecg.png"  # gradio serves it after this function returns
            result, _ = ecg.plot(recording, picture, sampling_rate=sampling_rate or None)
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error)) from error
    scores = {finding["label"]: finding["score"] for finding in result["findings"]}
    rows = [[entry["start"], entry["end"], entry["label"], entry["score"]] for entry in result["timeline"]]
    notes = [f"No findings: {result['refused']}"] if result["refused"] else []
    return (
        str(picture),
        scores,
        rows,
        "\n".join(notes + [note for note in result["notes"] if note != result["refused"]]),
    )


demo = gradio.Interface(
    read,
    inputs=[
        gradio.File(label="Recording (WFDB: header and signal files together)", file_count="multiple"),
        gradio.Number(label="Sampling rate in Hz, if the file does not state it", value=None),
    ],
    outputs=[
        gradio.Image(label="ECG", type="filepath"),
        gradio.Label(label="Findings"),
        gradio.Dataframe(label="Timeline", headers=["start (s)", "end (s)", "label", "score"]),
        gradio.Textbox(label="Notes"),
    ],
    title="ECGMamba",
    description="Research software, not a medical device.",
)

if __name__ == "__main__":
    demo.launch()
