"""`python -m hf_mse_adapter clip.mp4 --model M`: how does this clip feel?

Words, voice and face are found in the clip; --text, --audio and --vision give what is known of them, and stand alone
without a clip.
"""

import argparse
import csv
import glob
import json
import os
import sys
import tempfile
from pathlib import Path

PICTURES = (".png", ".pdf", ".svg")


def main(arguments=None):
    """Runs the command; returns its exit code: 0; 2 with one line on stderr, or where one of many clips fails; 3 where
    the LLM wrote no answer, to it or to one of many."""
    options = parser().parse_args(arguments)
    try:
        clips = find_clips(options.clip)
        check_outputs(options, clips)
        if len(clips) > 1:
            answers = read_clips(options, clips)
        else:
            options.clip = clips[0] if clips else None
            answers = read(options)
        if options.table is not None:
            several = answers if isinstance(answers, list) else [{"clip": options.clip or "", **answers}]
            write_table(several, options.table)
    except (ImportError, OSError, ValueError) as error:
        print(f"hf_mse_adapter: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(answers, ensure_ascii=False))
    elif len(clips) > 1:
        print(as_list(answers))
    else:
        print(as_table(answers) if options.turns else as_text(answers))
    answers = answers if isinstance(answers, list) else [answers]
    return 2 if any("error" in one for one in answers) else 3 if any("problem" in one for one in answers) else 0


def parser():
    parser = argparse.ArgumentParser(
        prog="python -m hf_mse_adapter", description="Read sentiment or emotion from a clip's words, voice and face."
    )
    parser.add_argument(
        "clip",
        nargs="*",
        help="video or sound: mp4, mkv, webm, mov, avi, wav, mp3, flac, m4a, ogg; several, a pattern such as "
        "'clips/*.mp4', or - for what comes from another command",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a folder, or a repository of the Hub")
    parser.add_argument("--backbone", metavar="DIR", help="a copy of its LLM (default: the one that it names)")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of that repository")
    parser.add_argument("--text", help="what was said; without it, it is heard in the clip")
    parser.add_argument("--audio", metavar="NPY", help="audio features [time, features], instead of the clip's")
    parser.add_argument("--vision", metavar="NPY", help="vision features [time, features], instead of the clip's")
    parser.add_argument("--speaker", metavar="NAME", help="who said it")
    parser.add_argument(
        "--context",
        metavar="TURN",
        action="append",
        default=[],
        help="an earlier utterance, as TEXT or SPEAKER:TEXT; repeat it, oldest first",
    )
    parser.add_argument(
        "--turns",
        metavar="CSV",
        help="a conversation: start, end (seconds), speaker and, where known, text of each turn in the clip",
    )
    parser.add_argument(
        "--method",
        choices=("expected", "median", "likeliest", "constrained", "greedy", "head"),
        help="how to answer (default: as the task does best)",
    )
    parser.add_argument("--explain", action="store_true", help="answer without each of words, voice and face, too")
    parser.add_argument("--table", metavar="CSV", help="write a line for each clip")
    parser.add_argument("--plot", metavar="PICTURE", help="draw voice, face and answer over time (png, pdf, svg)")
    parser.add_argument(
        "--speech-recognizer",
        metavar="DIR_OR_ID",
        help="hears the words, instead of the recognizer that the model names; such as a copy of it",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the first accelerator, else the CPU)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the LLM's repository brings")
    parser.add_argument("--json", action="store_true", help="print the result for a machine")
    return parser


def find_clips(given):
    """Clips by their names and patterns, each once, in order; "-" is what comes on stdin."""
    clips = []
    for name in given:
        if name == "-" or os.path.exists(name) or not glob.has_magic(name):
            clips.append(name)
        elif found := sorted(glob.glob(name, recursive=True)):
            clips += found
        else:
            raise FileNotFoundError(f"no file fits {name}")
    return list(dict.fromkeys(clips))


def check_outputs(options, clips):
    """What would otherwise fail after the work is done."""
    if not clips and options.text is None:
        raise ValueError("there is no clip and no --text; expected at least one of them")
    for name in ("turns", "plot"):
        if getattr(options, name) and not clips:
            raise ValueError(f"--{name} needs a clip")
    if options.turns and (options.explain or options.text or options.audio or options.vision or options.context):
        raise ValueError(
            "--turns reads all from the clip; expected no --text, --audio, --vision, --context, --explain"
        )
    if len(clips) > 1:
        alone = [name for name in ("turns", "plot", "text", "audio", "vision", "context") if getattr(options, name)]
        if alone or "-" in clips:
            what = f"--{alone[0]}" if alone else "-"
            raise ValueError(f"there are {len(clips)} clips, and {what} is of one; expected one clip")
    for name, endings in (("plot", PICTURES), ("table", (".csv",))):
        if getattr(options, name) is not None:
            path = Path(getattr(options, name))
            if path.suffix.lower() not in endings:
                raise ValueError(f"--{name} {path}: expected a name ending in {', '.join(endings)}")
            if not path.resolve().parent.is_dir():
                raise FileNotFoundError(f"--{name} {path}: its folder does not exist")


def read_clips(options, clips):
    """A `dict` for each of several clips: `clip`, and its answer or an `error`, which does not stop the others."""
    pipe, answers = load_pipeline(options), []
    for clip in clips:
        sample = {"clip": clip} | ({"speaker": options.speaker} if options.speaker else {})
        try:
            answer = pipe(sample, method=options.method, explain=options.explain)
        except (ImportError, OSError, ValueError) as error:
            answer = {"error": " ".join(str(error).split())}
        answers.append({"clip": clip, **answer})
    return answers


def read(options):
    """The pipeline's answer for one clip, or for each turn in it."""
    if options.clip == "-":
        options.clip = sys.stdin.buffer.read()
        if not options.clip:
            raise ValueError("nothing came on stdin; expected a clip's file")
    turns = read_turns(options.turns) if options.turns else None
    pipe = load_pipeline(options)
    if turns:
        answers = pipe.read_conversation(options.clip, turns, method=options.method)
        if options.plot:
            from .clip_plotting import plot_conversation

            plot_conversation(answers, options.plot)
        return answers
    sample = {name: getattr(options, name) for name in ("clip", "text", "audio", "vision", "speaker")}
    context = [turn.split(":", 1) for turn in options.context]
    sample["context"] = [tuple(map(str.strip, turn)) if len(turn) == 2 else turn[0] for turn in context]
    answer = pipe(sample, method=options.method, explain=options.explain)
    if options.plot:
        from .clip_plotting import plot_clip

        plot_clip(options.clip, answer, options.plot, pipe.reader)
    return answer


def load_pipeline(options):
    """The pipeline of `options.model`."""
    import torch
    from transformers.utils import logging

    from .configuration_mse_adapter import MseConfig
    from .modeling_mse_adapter import MseForConditionalGeneration, is_peft_folder
    from .pipeline_multimodal_sentiment import MultimodalSentimentPipeline
    from .processing_mse_adapter import MseProcessor

    model_type = MseConfig.get_config_dict(options.model, revision=options.revision)[0].get("model_type")
    if model_type != MseConfig.model_type and not is_peft_folder(options.model, {"revision": options.revision}):
        raise ValueError(f"--model {options.model} holds a model of type {model_type!r}; expected an MSE-Adapter")
    try:
        torch.empty(0, device=options.device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {error}") from None
    logging.disable_progress_bar()
    try:
        processor = MseProcessor.from_pretrained(options.model, revision=options.revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {options.model} has no processor that can be read: {error}") from None
    model = MseForConditionalGeneration.from_pretrained(
        options.model,
        backbone=options.backbone,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        dtype="auto",
    )
    return MultimodalSentimentPipeline(
        model, processor=processor, device=options.device, speech_recognizer=options.speech_recognizer
    )


def read_turns(path):
    """The turns of a csv file with the columns start, end, speaker and, where there is one, text."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"start", "end"} <= set(rows[0]):
        raise ValueError(
            f"{path} has the columns {sorted(rows[0]) if rows else []}; expected start, end, speaker, text"
        )
    turns = []
    for line, row in enumerate(rows, start=2):
        turn = {name: (row.get(name) or "").strip() or None for name in ("speaker", "text")}
        for name in ("start", "end"):
            try:
                turn[name] = float(row[name])
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {line}: {name} is {row[name]!r}; expected seconds") from None
        turns.append(turn)
    return turns


def as_text(answer):
    """The answer in words; classes by falling probability; then what it was made from."""
    lines = [_answer_in_words(answer)]
    for name, without in answer.get("without", {}).items():
        lines.append(f"without {_called(name)}: {_in_short(without)} (it adds {without.get('difference', 0):+.2f})")
    lines += _sources_in_words(answer.get("made_from", {}))
    return "\n".join(lines)


def as_list(answers):
    """Several clips, one a line."""
    width = max(len(answer["clip"]) for answer in answers)
    words = [f"failed: {one['error']}" if "error" in one else _in_short(one) for one in answers]
    return "\n".join(f"{answer['clip']:<{width}}  {said}" for answer, said in zip(answers, words, strict=True))


def write_table(answers, path):
    """A csv, whole or not at all: a line for each clip, or each turn of one, with its answer, words and sources."""
    labels = list(dict.fromkeys(label for answer in answers for label in answer.get("probabilities", ())))
    plain = [
        name
        for name in ("clip", "start", "end", "speaker", "value", "spread", "label", "score")
        if any(name in answer for answer in answers)
    ]
    handle, temporary = tempfile.mkstemp(dir=Path(path).resolve().parent, suffix=".csv")
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*plain, *(f"score_{label}" for label in labels), "text", "problem", "made_from"])
            for answer in answers:
                made_from = answer.get("made_from", {})
                writer.writerow([
                    *("" if isinstance(answer.get(name), bytes) else answer.get(name, "") for name in plain),
                    *(answer.get("probabilities", {}).get(label, "") for label in labels),
                    answer.get("text", made_from.get("transcript", "")),
                    answer.get("error", answer.get("problem", "")),
                    json.dumps(made_from, ensure_ascii=False),
                ])  # fmt: skip
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def as_table(answers):
    """A conversation, one turn a line."""
    lines = [f"{'seconds':>13}  {'speaker':<12} {'answer':<20} words"]
    for turn in answers:
        span = f"{turn['start']:.1f}-{turn['end']:.1f}"
        lines.append(f"{span:>13}  {turn['speaker'] or '':<12} {_in_short(turn):<20} {turn['text']}")
    return "\n".join(lines)


def _answer_in_words(answer):
    if "problem" in answer:
        return f"no answer: {answer['problem']}"
    if "value" in answer:
        spread = f" ± {answer['spread']:.2f}" if "spread" in answer else ""
        return f"sentiment intensity {answer['value']:+.2f}{spread}"
    if "probabilities" not in answer:
        return answer["label"]
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    return "\n".join(f"{probability:6.1%}  {label}" for label, probability in ranked)


def _in_short(answer):
    if answer.get("value") is not None:
        return f"{answer['value']:+.2f}"
    if answer.get("label") is not None:
        return answer["label"] + (f" {answer['score']:.0%}" if "score" in answer else "")
    return "no answer"


def _called(modality):
    return {"text": "words", "audio": "voice", "vision": "face"}.get(modality, modality)


def _sources_in_words(made_from):
    lines = []
    if "transcript" in made_from:
        lines.append(f"heard: {made_from['transcript']}" if made_from["transcript"] else "heard: nothing")
    if "seconds" in made_from:
        parts = [f"{made_from['seconds']:.1f} s"]
        if "speech_seconds" in made_from:
            parts.append(f"speech in {made_from['speech_seconds']:.1f} s")
        if made_from.get("frames"):
            face = f" ({made_from['face']})" if "face" in made_from else ""
            parts.append(f"a face in {made_from['frames_with_face']} of {made_from['frames']} frames{face}")
        lines.append(f"made from {', '.join(parts)}")
    for why in ("missing", "unread"):
        lines += [f"{_called(name)} {why}: {reason}" for name, reason in made_from.get(why, {}).items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
