"""A folder of video or sound files with labels.csv beside them: clip,label[,text,split,speaker,start,end,dialogue].

Features are made once: each clip's are kept, under a hash of its content and of how they are made, in a cache, so that
a run that was killed goes on where it was. A clip that cannot be read is listed and left out.
"""

import csv
import hashlib
import json
import logging
import math
import multiprocessing
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hf_mse_adapter.clip_features import ClipReader
from training.data.msa_samples import MODALITIES, SPLIT_NAMES, samples_to_dataset
from training.launch import end_with_parent
from training.reports import atomic_path

logger = logging.getLogger(__name__)

TABLE = "labels.csv"
COLUMNS = ("clip", "label", "text", "split", "speaker", "start", "end", "dialogue")
# raise it when the front ends give other numbers than before: it keeps old features from being used
CACHE_VERSION = 1
SPLIT_OF_NAME = {name: split for split, names in SPLIT_NAMES.items() for name in names}
HELD_OUT = 0.15  # of the groups, for validation and for the test, where the table has no splits


@dataclass(frozen=True)
class ClipRow:
    """A line of the table: `path` of the clip, and what is known of it."""

    id: str
    path: str
    label: str
    text: str | None = None
    split: str | None = None
    speaker: str = ""
    dialogue: str | None = None
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Extraction:
    """How features are made, and where they are kept."""

    front_ends: dict
    wanted: tuple
    cache: str
    speech_recognizer: str | None = None
    language: str = "en"

    def place(self, row):
        """The file that keeps the features of a row's clip: a name of its content and of all that decides."""
        digest = hashlib.sha256()
        with open(row.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        wanted = self.wanted_of(row)
        front_ends = {modality: self.front_ends.get(modality) for modality in wanted}
        decides = [CACHE_VERSION, wanted, front_ends, row.start, row.end]
        if "text" in wanted:
            decides += [self.speech_recognizer, self.language]
        digest.update(json.dumps(decides, sort_keys=True).encode())
        return Path(self.cache) / f"{digest.hexdigest()[:32]}.npz"

    def wanted_of(self, row):
        return tuple(name for name in self.wanted if name != "text" or row.text is None)


def read_table(folder):
    """
    The rows of `folder`/labels.csv, each with its split.

    Raises:
        OSError: no such table, or a clip that it names is missing.
        ValueError: a column or value is not what it should be; the message names the line.
    """
    table = Path(folder) / TABLE
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if missing := {"clip", "label"} - set(names):
            raise ValueError(f"{table} has the columns {names}; expected {sorted(missing)} as well")
        if unknown := set(names) - set(COLUMNS) - {"id"}:
            raise ValueError(f"{table} has the columns {sorted(unknown)}; expected {', '.join(COLUMNS)}")
        rows = [_row(Path(folder), line, f"{table}, line {number}") for number, line in enumerate(reader, start=2)]
    if not rows:
        raise ValueError(f"{table} has no line below its head")
    if twice := [name for name, count in Counter(row.id for row in rows).items() if count > 1]:
        raise ValueError(f"{table} has {twice[0]} twice; expected each clip, or part of it, once")
    given = [row.split is not None for row in rows]
    if any(given) != all(given):
        raise ValueError(f"{table} names a split for {sum(given)} of {len(rows)} clips; expected for all or none")
    return rows if all(given) else _split(rows)


def _row(folder, line, where):
    if None in line or None in line.values():
        raise ValueError(f"{where}: it has more or fewer cells than the head")
    cells = {name: value.strip() for name, value in line.items()}
    path = folder / cells["clip"]
    if not cells["clip"] or not path.is_file():
        raise FileNotFoundError(f"{where}: there is no clip {str(path)!r}")
    times = {}
    for name in ("start", "end"):
        if cells.get(name):
            try:
                times[name] = float(cells[name])
            except ValueError:
                times[name] = math.nan
            if not 0 <= times[name] < math.inf:
                raise ValueError(f"{where}: {name} is {cells[name]!r}; expected seconds")
    split = cells.get("split") or None
    if split is not None and split not in SPLIT_OF_NAME:
        raise ValueError(f"{where}: split is {split!r}; expected one of {', '.join(SPLIT_OF_NAME)}")
    part = (
        f"@{times.get('start', 0):g}-{times['end']:g}" if "end" in times else f"@{times['start']:g}" if times else ""
    )
    return ClipRow(
        id=cells.get("id") or cells["clip"] + part,
        path=str(path),
        label=cells["label"],
        # an empty cell of a column that is there says that nothing was said; no column, that it is to be heard
        text=cells.get("text"),
        split=split and SPLIT_OF_NAME[split],
        speaker=cells.get("speaker", ""),
        dialogue=cells.get("dialogue") or None,
        **times,
    )


def _split(rows):
    """The rows with splits by dialogue, else by speaker, else by clip: the same at every run."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.dialogue or row.speaker or row.path].append(row)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held_out = max(1, round(HELD_OUT * len(order)))
    if len(order) < 3:
        raise ValueError(f"there are {len(order)} dialogues, speakers or clips; expected 3, or a column split")
    split_of = {
        name: "valid" if place < held_out else "test" if place < 2 * held_out else "train"
        for place, name in enumerate(order)
    }
    return [ClipRow(**{**row.__dict__, "split": split_of[row.dialogue or row.speaker or row.path]}) for row in rows]


def extract(rows, extraction, num_processes=1, progress=True):
    """
    Features of each row's clip, from the cache or made now, over processes.

    Returns:
        features (`dict[str, dict]`): by id: text, audio, vision (arrays or None) and made_from.
        failed (`list[tuple[str, str]]`): id and reason of the clips that cannot be read.
    """
    Path(extraction.cache).mkdir(parents=True, exist_ok=True)
    for unfinished in Path(extraction.cache).glob(".*.npz"):
        unfinished.unlink(missing_ok=True)
    found, failed = {}, []
    bar = tqdm(total=len(rows), unit="clip", disable=not progress)
    for row, place, reason in extracted(rows, extraction, num_processes):
        if reason is None:
            found[row.id] = place
        else:
            failed.append((row.id, reason))
        bar.update()
    bar.close()
    return {row.id: read_features(found[row.id], row) for row in rows if row.id in found}, sorted(failed)


def extracted(rows, extraction, num_processes):
    """(row, file of its features, None), or (row, None, reason), of each row as it is done, over processes."""
    if num_processes <= 1 or len(rows) <= 1:
        _begin(extraction)
        yield from map(make_features, rows)
        return
    # a forked process would share torch's threads with this one
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(num_processes, len(rows)), begin_alone, (extraction,)) as pool:
        yield from pool.imap_unordered(make_features, rows)


_state = {}


def _begin(extraction):
    reader = ClipReader(
        extraction.front_ends, speech_recognizer=extraction.speech_recognizer, language=extraction.language
    )
    _state.update(extraction=extraction, reader=reader)


def begin_alone(extraction):
    """What a process of its own begins with, before `make_features`."""
    end_with_parent()
    # processes divide the work, not threads within it
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    _begin(extraction)


def make_features(row):
    """(row, file of its features, None), or (row, None, reason), by what this process has begun with."""
    extraction = _state["extraction"]
    try:
        place = extraction.place(row)
        if not place.is_file():
            features = _state["reader"].read(row.path, wanted=extraction.wanted_of(row), start=row.start, end=row.end)
            write_features(place, features)
        return row, place, None
    except Exception as error:  # what a damaged file makes a library raise is that clip's failure alone
        return row, None, reason_of(error)


def reason_of(error):
    """Why something failed, in one line; an error that is none of ours says what it is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


def write_features(path, features):
    """Keep a [`ClipFeatures`]; whole or not at all."""
    arrays = {
        name: getattr(features, name).values
        for name in MODALITIES
        if getattr(features, name) is not None and getattr(features, name).values is not None
    }
    words = json.dumps({"text": features.text, "made_from": features.made_from})
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, words=np.frombuffer(words.encode(), np.uint8), **arrays)


def read_features(path, row):
    """What `write_features` kept, the row's own text before what was heard."""
    with np.load(path, allow_pickle=False) as stored:
        words = json.loads(stored["words"].tobytes())
        arrays = {name: stored[name] if name in stored.files else None for name in MODALITIES}
    return {**arrays, "text": words["text"] if row.text is None else row.text, "made_from": words["made_from"]}


def load_clips(folder, task, extraction, num_processes=1, progress=True):
    """
    The data set of a folder of clips, as `training/run_msa.py --dataset clips` reads it.

    Args:
        folder (`str` or `Path`): with labels.csv.
        task (`str`): "regression" or "classification".
        extraction ([`Extraction`])
        num_processes (`int`), progress (`bool`)

    Returns:
        dict[str, Dataset]: by split, in numpy format.

    Raises:
        OSError, ValueError: see `read_table`; no clip of a split can be read.
    """
    rows = read_table(folder)
    features, failed = extract(rows, extraction, num_processes, progress)
    write_failed(Path(extraction.cache) / "failed.csv", failed)
    for name, reason in failed:
        logger.warning("%s is left out: %s", name, reason)
    if failed:
        logger.warning("%d of %d clips are left out, see %s/failed.csv", len(failed), len(rows), extraction.cache)
    samples = defaultdict(list)
    for number, row in enumerate(rows):
        if row.id in features:
            samples[row.split].append(_sample(row, number, task, features[row.id]))
    if not samples:
        raise ValueError(f"no clip of {folder} can be read; the first: {failed[0][0]}: {failed[0][1]}")
    widths = {
        modality: next((each[modality].shape[1] for row in samples.values() for each in row if len(each[modality])), 1)
        for modality in MODALITIES
    }
    return {
        split: with_widths(samples_to_dataset(samples[split], task, f"{folder}, {split}"), widths, task)
        for split in SPLIT_NAMES
        if split in samples
    }


def _sample(row, number, task, features):
    label = row.label
    if task == "regression":
        try:
            label = float(label)
        except ValueError:
            raise ValueError(f"{row.id}: the label is {label!r}; expected a number, or task classification") from None
    arrays = {name: np.zeros((0, 0), np.float32) if features[name] is None else features[name] for name in MODALITIES}
    place = {"dialogue_id": row.dialogue, "utterance_id": number} if row.dialogue else {}
    return {"id": row.id, "text": features["text"], "label": label, "speaker": row.speaker, **place, **arrays}


def with_widths(dataset, widths, task):
    """The Dataset, with columns of the widths that other splits have where this one lacks a modality altogether."""
    from training.data.msa_samples import sample_features

    if all(dataset.features[modality].shape[1] == widths[modality] for modality in MODALITIES):
        return dataset
    rows = {name: list(dataset[name][:]) for name in dataset.features}
    for modality in MODALITIES:
        rows[modality] = [np.asarray(values, np.float32).reshape(-1, widths[modality]) for values in rows[modality]]
    features = sample_features(widths["audio"], widths["vision"], task)
    return type(dataset).from_dict(rows, features).with_format("numpy")


def write_failed(path, failed):
    """A csv of clips that could not be read, and why."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("clip", "reason"), *failed])
