"""Reads sentiment or emotion from any number of clips over any number of processes and machines.

    accelerate launch training/predict_clips.py --model DIR_OR_ID --input FOLDER_OR_LIST --output DIR

FOLDER holds clips; LIST is a csv with the column clip (a path, relative to the list's folder) and, where known, text,
speaker, start and end, or a text file with a path in each line. DIR/scores-*.parquet gets one row a clip: `record`
(the path), `value` and `spread`, or `label` and `score_LABEL` for each class, `text` (given or heard), `seconds` and
`made_from` (json, as the pipeline gives it); DIR/failed.csv those that could not be read, and why. Started again, it
goes on with what is missing and tries the failed ones once more, with any number of processes, but not with another
model or input; a clip whose file has changed since, or of which the list says something else (`source_state`), is read
anew. One run at a time writes to DIR, whose run.lock it holds.
"""

import csv
import hashlib
import json
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from training.data.clips import reason_of
from training.launch import run, runs_on_cpu
from training.predict import Shards, gather_failed, only_run, state_of_files, write_table
from training.recipe import parse_recipe

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"),
    *(".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".aiff", ".aif"),
)
COLUMNS = ("clip", "text", "speaker", "start", "end")


@dataclass
class PredictClipsArguments:
    model: str = field(default="", metadata={"help": "Folder or Hub id of an MSE-Adapter."})
    input: str = field(default="", metadata={"help": "Folder of clips, or a csv or text file that lists them."})
    output: str = field(default="", metadata={"help": "Folder for the table; what it already holds is skipped."})
    pattern: str = field(default="**/*", metadata={"help": "Which files of the folder to take, as in Path.glob."})
    llm: str | None = field(
        default=None, metadata={"help": "Folder of the LLM, instead of the id that the model names."}
    )
    speech_recognizer: str | None = field(default=None, metadata={"help": "Likewise, of the recognizer of words."})
    method: str | None = field(default=None, metadata={"help": "How to answer; as the task does best by default."})
    batch_size: int = field(default=8, metadata={"help": "Clips that pass through the LLM at once."})
    shard_size: int = field(default=200, metadata={"help": "Clips in a file; what a kill can cost a process."})

    def __post_init__(self):
        for name in ("model", "input", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


def main(arguments=None):
    (options,) = parse_recipe((PredictClipsArguments,), arguments)
    state = PartialState(cpu=runs_on_cpu(), timeout=timedelta(days=7))
    clips = find_clips(options)
    # one process lists for all: files that come or go meanwhile must not shift anybody's share
    clips = broadcast_object_list([clips])[0]
    pipe = load_pipeline(options, state.device)
    # a list may say more of its clips than an earlier one of that name
    source = broadcast_object_list([str(Path(options.input).resolve())])[0]
    made_with = {"model": fingerprint(pipe, options), "input": source}
    shards = ClipShards(Path(options.output), pipe, made_with, options.shard_size)
    with only_run(shards.folder, state):
        predict(pipe, clips, shards, state, options)


def predict(pipe, clips, shards, state, options):
    """What is left to do, into the table."""
    if state.is_main_process:
        shards.remove_half_written()
        shards.drop_changed(lambda names: {name: state_of_clip(clips[name]) for name in names if name in clips})
    state.wait_for_everyone()
    done = shards.done()
    own = [name for name in list(clips)[state.process_index :: state.num_processes] if name not in done]
    state.wait_for_everyone()  # nobody writes before everybody has seen what is done

    failed, waiting = [], []
    progress = tqdm(
        total=len(own), unit="clip", desc=f"process 1 of {state.num_processes}", disable=not state.is_main_process
    )
    for name in own:
        try:
            source_state = state_of_clip(clips[name])
            waiting.append((name, source_state, *pipe.read_sample(clips[name])))
        except Exception as error:  # what a damaged file makes a library raise is that clip's failure alone
            failed.append((name, reason_of(error)))
        if len(waiting) == options.batch_size:
            answer(pipe, waiting, options, shards)
            waiting = []
        progress.update()
    if waiting:
        answer(pipe, waiting, options, shards)
    shards.write()
    progress.close()

    write_table(shards.folder / f".failed-{state.process_index}.csv", failed)
    state.wait_for_everyone()
    if state.is_main_process:
        failed = gather_failed(shards.folder, state.num_processes)
        print(f"{len(shards.done())} clips in {shards.folder}, {len(failed)} failed (failed.csv)")


def find_clips(options):
    """{name: sample of the pipeline}, in order."""
    source = Path(options.input)
    if source.is_dir():
        output = Path(options.output).resolve()
        paths = sorted(path for path in source.glob(options.pattern) if path.suffix.lower() in SUFFIXES)
        paths = [path for path in paths if path.is_file() and output not in path.resolve().parents]
        clips = {path.relative_to(source).as_posix(): {"clip": str(path)} for path in paths}
    elif source.suffix.lower() == ".csv":
        with source.open(newline="", encoding="utf-8-sig") as file:
            clips = dict(_listed(row, source, line) for line, row in enumerate(csv.DictReader(file), start=2))
    else:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        clips = {line: {"clip": str(source.parent / line)} for line in lines if line}
    if not clips:
        raise ValueError(f"{source} holds no clip; expected names ending in {', '.join(SUFFIXES)}")
    return clips


def _listed(row, source, line):
    if None in row or not row.get("clip"):
        raise ValueError(f"{source}, line {line}: expected the columns {', '.join(COLUMNS)}, of which clip is filled")
    sample = {"clip": str(source.parent / row["clip"])}
    # an empty cell of a text column says that nothing was said
    sample |= {name: row[name] for name in ("text", "speaker") if row.get(name) is not None}
    for name in ("start", "end"):
        if row.get(name):
            try:
                sample[name] = float(row[name])
            except ValueError:
                raise ValueError(f"{source}, line {line}: {name} is {row[name]!r}; expected seconds") from None
    part = f"@{sample.get('start', 0):g}-{sample['end']:g}" if "end" in sample else ""
    return row["clip"] + (part or (f"@{sample['start']:g}" if "start" in sample else "")), sample


def load_pipeline(options, device):
    backbone = None if options.llm is None else AutoModelForCausalLM.from_pretrained(options.llm)
    return MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(options.model, backbone=backbone),
        processor=MseProcessor.from_pretrained(options.model),
        device=device,
        speech_recognizer=options.speech_recognizer,
    )


def fingerprint(pipe, options):
    """A hash of all that decides a clip's row, wherever the model lies: weights, how features and answers are made."""
    processor = {name: value for name, value in pipe.processor.to_dict().items() if name != "auto_map"}
    recognizer = options.speech_recognizer
    if recognizer is not None and Path(recognizer).is_dir():
        recognizer = [state_of_files(path) for path in sorted(Path(recognizer).iterdir())]
    settings = [processor, pipe.model.config.backbone_name_or_path, options.method, recognizer]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    # the LLM's weights are none of the model's own state
    for part in (pipe.model, pipe.model.language_model):
        for name, weight in sorted(part.state_dict().items()):
            if not weight.is_meta:
                digest.update(name.encode())
                digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def state_of_clip(sample):
    """Tells a clip, and what was said of it, from what stood at its name earlier."""
    given = json.dumps({name: value for name, value in sample.items() if name != "clip"}, sort_keys=True)
    return hashlib.sha256(f"{state_of_files(sample['clip'])} {given}".encode()).hexdigest()[:16]


def answer(pipe, waiting, options, shards):
    """Answers a batch of clips that have been read."""
    samples = [sample for _, _, sample, _ in waiting]
    answers = pipe(samples, batch_size=len(samples), method=options.method)
    for (name, source_state, sample, made_from), given in zip(waiting, answers, strict=True):
        row = {"record": name, "text": sample["text"], "made_from": json.dumps(made_from)}
        row["source_state"] = source_state
        row |= {"seconds": made_from["seconds"], "problem": given.get("problem")}
        row |= {field: given[field] for field in ("value", "spread", "label") if field in given}
        row |= {f"score_{label}": score for label, score in given.get("probabilities", {}).items()}
        shards.add(row)


class ClipShards(Shards):
    """The table in DIR, see there."""

    def __init__(self, folder, pipe, made_with, shard_size):
        self.folder, self.shard_size, self.rows = folder, shard_size, []
        if pipe.processor.answers.task == "regression":
            answers = [("value", pyarrow.float64()), ("spread", pyarrow.float64())]
        else:
            labels = pipe.processor.answers.labels
            answers = [("label", pyarrow.string()), *((f"score_{label}", pyarrow.float32()) for label in labels)]
        self.schema = pyarrow.schema(
            [
                ("record", pyarrow.string()),
                *answers,
                ("problem", pyarrow.string()),
                ("text", pyarrow.string()),
                ("seconds", pyarrow.float64()),
                ("made_from", pyarrow.string()),
                ("source_state", pyarrow.string()),
            ],
            metadata=made_with,
        )
        folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    run(main)
