"""Makes features of a folder of clips (labels.csv beside them), once, over processes:

    python training/extract_clips.py FOLDER --output FEATURES --num_processes 2

writes FEATURES/{train,valid,test}.parquet, which `training/run_msa.py --dataset parquet` reads, front_ends.json (how
they were made), and failed.csv: clip and reason of those that cannot be read. Killed and started again, it goes on:
what is made is kept in FEATURES/cache. (`run_msa.py --dataset clips` does all this itself.)
"""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, checked_front_ends, parse_front_end
from training.data.clips import Extraction, extract, read_table, write_failed
from training.recipe import parse_recipe
from training.reports import atomic_path, write_json


@dataclass
class FrontEndArguments:
    """How features are made of clips; saved with the processor."""

    audio_front_end: str | None = field(
        default=None, metadata={"help": "log_mel, egemaps, or encoder:ID[:LAYER] of an audio encoder; none."}
    )
    vision_front_end: str | None = field(
        default=None, metadata={"help": "face_geometry, or encoder:ID[:LAYER] of an image encoder; none."}
    )
    text_front_end: str | None = field(
        default=None, metadata={"help": "Id of the speech recognizer that hears words that are not given; none."}
    )
    speech_recognizer: str | None = field(
        default=None, metadata={"help": "A copy of the recognizer on this machine, to be used instead of its id."}
    )

    def front_ends(self, modalities, with_defaults):
        """The config for the processor: what is stated, and otherwise the default, of `modalities`."""
        config = {}
        for modality in modalities:
            stated = getattr(self, f"{modality}_front_end")
            if stated is not None:
                if stated != "none":
                    config[modality] = parse_front_end(modality, stated)
            elif with_defaults:
                config[modality] = DEFAULT_FRONT_ENDS[modality]
        return checked_front_ends(config)


@dataclass
class ExtractArguments:
    folder: str = field(default="", metadata={"help": "Clips, and labels.csv."})
    output: str = field(default="", metadata={"help": "Folder for the features."})
    withhold: list[str] = field(
        default_factory=list, metadata={"help": "Of text, audio and vision, what is not made."}
    )
    language: str = field(default="en", metadata={"help": "Of what is said."})
    num_processes: int = 1

    def __post_init__(self):
        for name in ("folder", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")
        if self.num_processes < 1:
            raise ValueError(f"num_processes is {self.num_processes}; expected at least 1")


def main(arguments=None):
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments[:1] = ["--folder", arguments[0]]
    options, making = parse_recipe((ExtractArguments, FrontEndArguments), arguments)
    wanted = tuple(name for name in ("text", "audio", "vision") if name not in options.withhold)
    front_ends = making.front_ends(wanted, with_defaults=True) or {}
    output = Path(options.output)
    wanted = tuple(name for name in wanted if name in front_ends)
    extraction = Extraction(front_ends, wanted, str(output / "cache"), making.speech_recognizer, options.language)
    rows = read_table(options.folder)
    features, failed = extract(rows, extraction, options.num_processes)
    write_json(output / "front_ends.json", front_ends)
    write_failed(output / "failed.csv", failed)
    for split in sorted({row.split for row in rows}):
        own = [(number, row) for number, row in enumerate(rows) if row.split == split and row.id in features]
        if own:
            write_parquet(output / f"{split}.parquet", own, features)
    print(f"{len(features)} clips in {output}, {len(failed)} failed (failed.csv)")


def write_parquet(path, rows, features):
    """A split as `load_msa_parquet` reads it."""
    labels = [row.label for _, row in rows]
    with suppress(ValueError):  # names of classes
        labels = [float(label) for label in labels]
    sequence = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    columns = {
        "id": pyarrow.array([row.id for _, row in rows]),
        "text": pyarrow.array([features[row.id]["text"] for _, row in rows]),
        "audio": pyarrow.array([_as_list(features[row.id]["audio"]) for _, row in rows], sequence),
        "vision": pyarrow.array([_as_list(features[row.id]["vision"]) for _, row in rows], sequence),
        "label": pyarrow.array(labels),
        "dialogue_id": pyarrow.array([row.dialogue or row.id for _, row in rows]),
        "utterance_id": pyarrow.array([number for number, _ in rows]),
        "speaker": pyarrow.array([row.speaker for _, row in rows]),
        "made_from": pyarrow.array([json.dumps(features[row.id]["made_from"]) for _, row in rows]),
    }
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")


def _as_list(values):
    return None if values is None else values.tolist()


if __name__ == "__main__":
    main()
