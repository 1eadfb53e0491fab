"""A page to try a multimodal sentiment or emotion model; the variable MODEL_ID says which (a Hub id or a folder)."""

import os

import gradio as gr
from transformers import pipeline

# publishing fills these in; the variables of the Space, or of a shell, win
MODEL_ID = os.environ.get("MODEL_ID", "THIS_REPOSITORY")
REVISION = os.environ.get("REVISION", "main" if "MODEL_ID" in os.environ else "THIS_REVISION")

pipe = pipeline("multimodal-sentiment", model=MODEL_ID, revision=REVISION, trust_remote_code=True)
is_regression = pipe.processor.answers.task == "regression"
texts = pipe.processor.answers.texts


def read(text, speaker, audio, vision):
    try:
        answer = pipe({"text": text, "speaker": speaker, "audio": audio, "vision": vision})
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from error
    if is_regression:
        spread = f" ± {answer['spread']:.2f}" if "spread" in answer else ""  # a head answers without
        return f"## {answer['value']:+.2f}{spread}\non a scale from {texts[0]} to {texts[-1]}"
    return answer["probabilities"]


demo = gr.Interface(
    read,
    inputs=[
        gr.Textbox(label="What was said"),
        gr.Textbox(label="Who said it (optional)"),
        gr.File(label=f"Audio features, .npy [time, {pipe.processor.audio_dim}] (optional)", type="filepath"),
        gr.File(label=f"Vision features, .npy [time, {pipe.processor.vision_dim}] (optional)", type="filepath"),
    ],
    outputs=gr.Markdown() if is_regression else gr.Label(label="Emotion"),
    title="MSE-Adapter",
    description="A frozen LLM with a small plug-in for voice and face.",
    flagging_mode="never",
    delete_cache=(30, 60),  # no upload is kept
)

if __name__ == "__main__":
    demo.launch()
