"""A Space: speak, film yourself, bring a clip or type; read what a model feels in it, and why. Nothing is kept.

The variables MODEL_ID, REVISION, LLM and SPEECH_RECOGNIZER say which model, of which state, and where copies of its
LLM and of the recognizer of words are, if not where the model says.
"""

import base64
import html
import io
import json
import os
import re
import sys
from pathlib import Path

import drawing
import gradio as gr
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import pipeline

# publishing fills these in; the variables of the Space, or of a shell, win
MODEL_ID = os.environ.get("MODEL_ID", "THIS_REPOSITORY")
REVISION = os.environ.get("REVISION", "main" if "MODEL_ID" in os.environ else "THIS_REVISION")
OWN_COPY = {"backbone": os.environ["LLM"]} if "LLM" in os.environ else {}

LONGEST_SECONDS = 120.0  # of a clip, or of a conversation
MOST_TURNS, MOST_FACES = 30, 6
MOST_CHARACTERS = 2000
TURN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*s?\s*[-\u2013]\s*(\d+(?:\.\d+)?)\s*s?\b\s*(?:([^:]{0,60}):)?(.*)")
SIDE = 168  # pixels of a face's picture
DISCLAIMER = (
    "**What a person shows is not what a person feels.** A research model guesses from words, voice and face what "
    "annotators said of other people, and is often wrong. Not for decisions about anybody. Clips are deleted within "
    "two minutes; nothing is kept."
)

pipe = pipeline(
    "multimodal-sentiment",
    model=MODEL_ID,
    revision=REVISION,
    trust_remote_code=True,
    model_kwargs=OWN_COPY,
    speech_recognizer=os.environ.get("SPEECH_RECOGNIZER"),
)
answers = pipe.processor.answers
SCALE = (float(answers.candidates[0]), float(answers.candidates[-1])) if answers.task == "regression" else None
TRAINED_ON = pipe.processor.modalities or ("text", "audio", "vision")
# the code that came with the model
CLIP_CODE = sys.modules[type(pipe.reader).__module__]
FACE_CODE = sys.modules[CLIP_CODE.FaceGeometry.__module__]


def read(film=None, voice=None, text="", speaker="", audio=None, vision=None):
    """
    A film, or else a voice, with what is known of it -> the answer as a page.

    Words that are not typed are heard in the clip. Features (.npy) take the place of the clip's own.
    """
    try:
        clip = one_of(film, voice)
        if len(text or "") > MOST_CHARACTERS:
            raise ValueError(f"the text has {len(text)} characters; expected at most {MOST_CHARACTERS}")
        sample = {name: value for name, value in (("audio", audio), ("vision", vision)) if value}
        sample |= {"text": text.strip()} if text and text.strip() else {}
        if not sample and not clip:
            raise ValueError("there is nothing to read; speak, film yourself, choose a clip, or type")
        notes = []
        if clip:
            sample |= {"clip": clip, "end": LONGEST_SECONDS}
        elif "text" not in sample:
            sample["text"] = ""
        if speaker and speaker.strip():
            sample["speaker"] = speaker.strip()[:MOST_CHARACTERS]
        answer = pipe(sample, explain=True)
        made_from = answer.setdefault("made_from", {})
        if clip and made_from.get("seconds", 0) > LONGEST_SECONDS:
            notes.append(f"the first {LONGEST_SECONDS:.0f} s of the clip were read")
        made_from["notes"] = notes
        looks = film and "vision" in TRAINED_ON and not vision
        return drawing.answer_page(answer, SCALE, faces_in(film) if looks else ())
    except (ValueError, OSError, ImportError) as error:
        return refused(error)


def read_conversation(film=None, voice=None, turns=None):
    """A film or voice of people who take turns -> their answers over time; turns that are not given are found."""
    try:
        clip = one_of(film, voice)
        if not clip:
            raise ValueError("there is no clip; record or choose one")
        lines = [line for line in (turns or "").splitlines() if line.strip()]
        given = [turn_of(line, number) for number, line in enumerate(lines, start=1)]
        given = given or [{"start": begin, "end": end} for begin, end in spoken_in(clip)]
        if not given:
            raise ValueError("nobody speaks in the clip, and no turns are given")
        if len(given) > MOST_TURNS:
            raise ValueError(f"there are {len(given)} turns; expected at most {MOST_TURNS}")
        return drawing.conversation_page(pipe.read_conversation(clip, given), SCALE)
    except (ValueError, OSError, ImportError) as error:
        return refused(error)


def read_example():
    """The model's own example, in features."""
    folder = Path(MODEL_ID)
    path = folder / "example.json" if folder.is_dir() else hf_hub_download(MODEL_ID, "example.json", revision=REVISION)
    sample = json.loads(Path(path).read_text(encoding="utf-8"))
    answer = pipe(sample, explain=True)
    said = f"“{html.escape(sample['text'])}”" if sample.get("text") and "text" in TRAINED_ON else "no words"
    given = [drawing.CALLED[name] for name in ("audio", "vision") if sample.get(name) is not None]
    features = f", with features of {' and '.join(given)}" if given else ""
    note = f"<p>An example that came with the model: {said}{features}.</p>"
    # what it was not trained on is in its example for the shape alone
    answer.pop("made_from", None)
    return note + drawing.answer_page(answer, SCALE)


def read_feeling(clip: str | None = None, text: str = "") -> dict:
    """
    Read sentiment or emotion from a clip's words, voice and face, or from words alone.

    Args:
        clip: a video or sound file (mp4, webm, mov, mkv, wav, mp3, flac, ogg), of which two minutes are read.
        text: what was said; if it is empty, it is heard in the clip.

    Returns:
        value and spread, or label, score and probabilities; made_from; and what the answer is without each of text,
        audio and vision.
    """
    if not clip and not text.strip():
        raise gr.Error("there is no clip and no text; expected at least one of them")
    sample = ({"clip": clip, "end": LONGEST_SECONDS} if clip else {}) | ({"text": text} if text.strip() else {})
    try:
        return pipe(sample, explain=True)
    except (ValueError, OSError, ImportError) as error:
        raise gr.Error(in_one_line(error)) from None


def one_of(film, voice):
    if film and voice:
        raise ValueError("there are a film and a voice; expected one of them: clear the other")
    return film or voice


def refused(error):
    return f"<p role='alert'><strong>This could not be read.</strong> {html.escape(in_one_line(error))}</p>"


def in_one_line(error):
    # the server's folders are nobody's business
    return re.sub(r"(?:/[\w.~+-]+)+/", "", " ".join(str(error).split()))


def turn_of(line, number):
    """A line such as "2.5 - 4 Ann: Hello." as a turn."""
    found = TURN.fullmatch(line)
    if found is None:
        raise ValueError(f"line {number} of the turns is {line[:60]!r}; expected such as 2.5 - 4 Ann: Hello.")
    start, end, speaker, text = found.groups()
    turn = {"start": float(start), "end": float(end)}
    if not turn["start"] < turn["end"] <= LONGEST_SECONDS:
        raise ValueError(
            f"line {number} of the turns is from {start} to {end} s; expected a start before its end, and both within "
            f"{LONGEST_SECONDS:g} s"
        )
    named = {"speaker": (speaker or "").strip(), "text": text.strip()}
    return turn | {name: value for name, value in named.items() if value}


def spoken_in(path):
    """Where somebody speaks: (begin, end) in seconds."""
    loudness, resampler, start = CLIP_CODE.Loudness(), None, 0.0
    with CLIP_CODE.Clip(path) as clip:
        for piece in clip.pieces(end=LONGEST_SECONDS):
            if resampler is None:
                resampler, start = CLIP_CODE.Resampler(piece.sampling_rate), piece.start
            samples = resampler.add(piece.samples)
            if len(samples):
                loudness.add(CLIP_CODE.Sound(start, samples, CLIP_CODE.RATE))
    return [] if resampler is None else CLIP_CODE.speech_spans(loudness)


def faces_in(path):
    """[(seconds, picture)] of the face that the model reads, spread over the clip."""
    front_end = (pipe.processor.front_ends or {}).get("vision")
    if front_end is None:
        return []
    rate = 2.0
    tracker = FACE_CODE.FaceTracker(pipe.reader.model("face"), rate, picture_of)
    with CLIP_CODE.Clip(path) as clip:
        if not clip.has_video:
            return []
        for frame in clip.pieces(audio=False, frame_rate=rate, end=LONGEST_SECONDS):
            tracker.add(frame)
    rows, _ = tracker.chosen()
    places = sorted(rows)
    step = max(1, -(-len(places) // MOST_FACES))
    return [(place / rate, rows[place]) for place in places[::step]]


def picture_of(points, presence, image):
    """The face in a frame as a small picture in a data address."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    reach = 0.6 * max(high - low)
    left, top = (low + high) / 2 - reach
    crop = Image.fromarray(image).crop((round(left), round(top), round(left + 2 * reach), round(top + 2 * reach)))
    file = io.BytesIO()
    crop.resize((SIDE, SIDE)).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


reads = ", ".join(drawing.CALLED[name] for name in ("text", "audio", "vision") if name in TRAINED_ON)
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

# gradio keeps uploads of equal content in one place, so that none can be deleted while others may be reading it
with gr.Blocks(title="MSE-Adapter", delete_cache=(30, 60), analytics_enabled=False) as demo:
    gr.Markdown(f"# MSE-Adapter: how does this sound?\nWhat this model reads: {reads}.\n\n{DISCLAIMER}")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            with gr.Tab("Film"):
                film = gr.Video(
                    label="Film yourself, or choose a clip",
                    sources=["upload", "webcam"],
                    include_audio=True,
                    height=300,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_classes="clip",
                )
            with gr.Tab("Voice"):
                voice = gr.Audio(
                    label="Speak, or choose a recording",
                    sources=["microphone", "upload"],
                    type="filepath",
                    editable=False,
                )
            text = gr.Textbox(label="What was said", info="Leave it empty, and it is heard in the clip.")
            with gr.Row():
                go = gr.Button("Read it", variant="primary")
                again = gr.Button("The example")
            with gr.Accordion("Advanced: speaker, features of your own", open=False):
                speaker = gr.Textbox(label="Who said it")
                audio = gr.File(
                    label=f"Voice features, .npy [time, {pipe.processor.audio_dim}]", type="filepath", height=110
                )
                vision = gr.File(
                    label=f"Face features, .npy [time, {pipe.processor.vision_dim}]", type="filepath", height=110
                )
            with gr.Accordion("A conversation", open=False):
                gr.Markdown("A line for each turn in the clip; without any, turns are found where somebody speaks.")
                turns = gr.Textbox(
                    label="Turns",
                    info="Seconds, who, and what was said, if it is known.",
                    lines=4,
                    max_lines=12,
                    placeholder="0 - 2 Ann: Hello.\n2.5 - 5 Bo:",
                )
                talk = gr.Button("Read the conversation")
        with gr.Column(scale=2, min_width=300):
            found = gr.HTML()
    fields = [film, voice, text, speaker, audio, vision]
    go.click(read, fields, found, api_name=False, concurrency_limit=2)
    text.submit(read, fields, found, api_name=False, concurrency_limit=2)
    talk.click(read_conversation, [film, voice, turns], found, api_name=False, concurrency_limit=2)
    again.click(read_example, None, found, api_name=False, concurrency_limit=2)
    demo.load(read_example, None, found, api_name=False, concurrency_limit=2)
    # for programs, and as a tool of an MCP client
    with gr.Row(visible=False):
        clip = gr.File(label="clip", type="filepath")
        words = gr.Textbox(label="text")
        result = gr.JSON(label="answer")
        ask = gr.Button("ask")
    ask.click(read_feeling, [clip, words], result, api_name="read_feeling", concurrency_limit=2)

if __name__ == "__main__":
    demo.launch(css=drawing.CSS, theme=THEME, max_file_size="64mb", mcp_server=True)
