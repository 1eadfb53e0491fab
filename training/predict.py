"""Classify any number of ECG recordings over any number of processes and machines.

    accelerate launch training/predict.py --model DIR_OR_ID --input FOLDER_OR_DATASET --output DIR

writes DIR/scores-*.parquet: one row a recording with `record` (its path in the folder; of a file that holds many, such
as CODE-15's HDF5, PATH#EXAM_ID or PATH#NUMBER), `seconds` (its length),
`score_LABEL` for each label, `findings` (labels whose score reaches the threshold), `timeline` and `notes` as the
pipeline gives them; and DIR/failed.csv: record and reason of those that could not be read, or in which nothing is
found as they are probably not what they are said to be (`--on_doubt note` insists). Started again, it goes on
with what is missing, tries the failed ones once more, and may do so with another number of processes, but not with
another model, input or sampling rate, leads or units; a recording whose files have changed since (`source_state`) is
classified anew. One run at a time writes to DIR, whose run.lock it holds.

    datasets.load_dataset("parquet", data_files="DIR/scores-*.parquet", split="train").to_pandas()
"""

import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, islice
from math import isnan
from numbers import Real
from pathlib import Path
from typing import Any
from uuid import uuid4

# threads that spin while they wait take the cores from the processes that read
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import pyarrow
import pyarrow.parquet
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_ecgmamba import EcgMambaConfig, open_recordings
from hf_ecgmamba.default_network import NAME, default_network
from hf_ecgmamba.pipeline_ecg_classification import ScoredRecording, collate, load_pipeline
from hf_ecgmamba.recording_arrays import may_hold_many
from hf_ecgmamba.recording_channels import FILE_ENDINGS
from training.launch import end_with_parent, run, runs_on_cpu
from training.recipe import parse_recipe
from training.reports import atomic_path

STATED = ("sampling_rate", "leads", "units")
LOCK_SECONDS = 10.0  # of patience with a killed run whose last process is still going
MOST_PIECES = 1000  # on their way together, of recordings that fail


@dataclass
class PredictArguments:
    model: str | None = field(
        default=None, metadata={"help": f"Folder or Hub id of an ECGMamba classifier; by default {NAME}."}
    )
    input: str = field(
        default="",
        metadata={
            "help": "Folder of recordings; or folder (save_to_disk) or Hub id of a dataset with the columns array "
            "or path and, where known, record, sampling_rate, leads, units."
        },
    )
    output: str = field(default="", metadata={"help": "Folder for the table; what it already holds is skipped."})
    pattern: str = field(default="**/*", metadata={"help": "Which files of the folder to take, as in Path.glob."})
    split: str = field(default="train", metadata={"help": "Which split of a dataset to take."})
    sampling_rate: float | None = field(default=None, metadata={"help": "Hz, of recordings that do not state theirs."})
    leads: list[str] | None = field(default=None, metadata={"help": "Of recordings that do not name theirs: I II V1."})
    units: str | None = field(default=None, metadata={"help": "Of recordings that do not state it: mV, uV, V, nV."})
    on_doubt: str = field(
        default="refuse",
        metadata={"help": "note: findings also of recordings that are probably not what they are said to be."},
    )
    batch_size: int = field(default=64, metadata={"help": "Windows that pass through the model at once."})
    shard_size: int = field(default=1000, metadata={"help": "Recordings in a file; what a kill can cost a process."})
    num_workers: int = field(default=1, metadata={"help": "Processes that read ahead, for each that computes."})

    def __post_init__(self):
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")
        if self.on_doubt not in ("refuse", "note"):
            raise ValueError(f"on_doubt is {self.on_doubt!r}; expected refuse or note")
        for name, least in (("batch_size", 1), ("shard_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


def main(arguments=None):
    (options,) = parse_recipe((PredictArguments,), arguments)
    # shares differ in size and machines in speed: whoever is done first waits for days rather than minutes
    state = PartialState(cpu=runs_on_cpu(), timeout=timedelta(days=7))
    pipeline = load_pipeline(options.model or default_network(), device=state.device)

    sources = find_sources(options)
    # one process lists for all: files that come or go meanwhile must not shift anybody's share
    listed = broadcast_object_list([sources.names, sources.identity, sources.of_many])
    sources.names, sources.identity, sources.of_many = listed
    labels = list(pipeline.model.config.id2label.values())
    made_with = {
        "model": fingerprint(pipeline, options.on_doubt),
        "input": sources.identity,
        **{name: json.dumps(getattr(options, name)) for name in STATED},
    }
    shards = Shards(Path(options.output), labels, made_with, options.shard_size)
    with only_run(shards.folder, state):
        predict(pipeline, sources, shards, state, options)


def predict(pipeline, sources, shards, state, options):
    """What is left to do, into the table."""
    if state.is_main_process:
        shards.remove_half_written()
        shards.drop_changed(sources.state_by_name)
    state.wait_for_everyone()
    done = shards.done()
    share = range(state.process_index, len(sources), state.num_processes)
    own = [index for index in share if sources.names[index] not in done]
    state.wait_for_everyone()  # nobody writes before everybody has seen what is done

    failed = []
    progress = tqdm(
        total=len(own), unit="recording", desc=f"process 1 of {state.num_processes}", disable=not state.is_main_process
    )
    for index, result in classify(pipeline, Reading(sources, own, pipeline, options), options):
        name = sources.names[index]
        if isinstance(result, str):
            failed.append((name, result))
        else:
            shards.add({"record": name, **result})
        progress.update()
    shards.write()
    progress.close()

    write_table(shards.folder / f".failed-{state.process_index}.csv", failed)
    state.wait_for_everyone()
    if state.is_main_process:
        failed = gather_failed(shards.folder, state.num_processes)
        passed_over = sources.passed_over and f"; passed over: {sources.passed_over}"
        print(f"{len(shards.done())} recordings in {shards.folder}, {len(failed)} failed (failed.csv){passed_over}")


@contextmanager
def only_run(folder, state):
    """Holds the lock of a run's folder, by its first process for all; ValueError where another run holds it."""
    lock, problem = FileLock(folder / "run.lock"), None
    if state.is_main_process:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            problem = f"another run is writing to {folder}; wait for its end, or give another --output"
    # none of them may go on alone
    problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise ValueError(problem)
    try:
        yield
    finally:
        lock.release()


def fingerprint(pipeline, on_doubt="refuse"):
    """A hash of all that decides a recording's row, wherever the model lies: weights, labels, thresholds, reading."""
    config, reading = pipeline.model.config, pipeline.feature_extractor.to_dict()
    settings = {name: getattr(config, name) for name in (*EcgMambaConfig.__annotations__, "id2label", "problem_type")}
    settings["on_doubt"] = on_doubt
    settings["reading"] = {name: value for name, value in reading.items() if name != "auto_map"}  # where its code lies
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(pipeline.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# -- what there is to read ------------------------------------------------------------------------------------------


@dataclass
class Sources:
    """Names, unique, and where the recordings are: the folder that the names are relative to, or a dataset's rows."""

    names: list[str]
    place: Any
    identity: str  # tells one folder or dataset from another
    passed_over: str = ""  # how many other files of the folder there are, by ending
    of_many: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> file of many recordings, place in it

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """A recording, or (path, place) of one in a file of many; and what is stated of it beside the recording
        itself: sampling_rate, leads, units."""
        if not isinstance(self.place, Path):
            return self.place[index]
        name = self.names[index]
        if name in self.of_many:
            file, place = self.of_many[name]
            return (str(self.place / file), place), {}
        return str(self.place / name), {}

    def state(self, index):
        """Tells a recording from the one that its files held earlier; the same for all rows that are arrays."""
        if isinstance(self.place, Path):
            name = self.names[index]
            return state_of_files(self.place / self.of_many.get(name, (name,))[0])
        return state_of_files(self.place.path(index)) if self.place.source == "path" else ""

    def state_by_name(self, names):
        """`dict[str, str]`: the states of those of `names` that are in the input."""
        places = {name: index for index, name in enumerate(self.names)}
        return {name: self.state(places[name]) for name in names if name in places}


class DatasetRecordings:
    """Rows of a `datasets.Dataset`: the array or path of a recording, and what further columns state of it."""

    def __init__(self, dataset):
        self.source = next((name for name in ("array", "path") if name in dataset.column_names), None)
        if self.source is None:
            raise ValueError(f"the dataset has the columns {sorted(dataset.column_names)}; expected array or path")
        columns = [name for name in (self.source, *STATED) if name in dataset.column_names]
        self.dataset = dataset.select_columns(columns).with_format("numpy")

    def path(self, index):
        return str(self.dataset[index]["path"])

    def __getitem__(self, index):
        row = self.dataset[index]
        source = row.pop(self.source)
        missing = [name for name, value in row.items() if value is None or (isinstance(value, Real) and isnan(value))]
        stated = {name: value for name, value in row.items() if name not in missing}
        if "leads" in stated:
            stated["leads"] = [None if lead is None else str(lead) for lead in stated["leads"]]
        return (source if self.source == "array" else str(source)), stated


def find_sources(options):
    folder = Path(options.input)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if folder.is_file():
        raise ValueError(f"input is {options.input}, a file; expected a folder (python -m hf_ecgmamba reads one file)")
    if folder.is_dir() and not saved:
        output = Path(options.output)
        if output.resolve() == folder.resolve():
            raise ValueError(f"output is {options.output}, the input folder itself; expected another folder")
        is_inside = folder.resolve() in output.resolve().parents
        names = list_recordings(folder, options.pattern, leave_out=output if is_inside else None)
        if not names:
            raise ValueError(
                f"{folder} holds no recording that fits {options.pattern}; expected names ending in "
                f"{', '.join(FILE_ENDINGS)}"
            )
        others = count_others(folder, names, options.pattern, leave_out=output if is_inside else None)
        names, of_many = each_of_many(folder, names)
        return Sources(names, folder, str(folder.resolve()), others, of_many)
    dataset = datasets.load_from_disk(folder) if saved else datasets.load_dataset(options.input, split=options.split)
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset[options.split]
    names = list(map(str, dataset["record"])) if "record" in dataset.column_names else None
    names = names or [f"{index:09d}" for index in range(len(dataset))]
    if len(set(names)) < len(names):
        raise ValueError("the dataset's column record has equal names; expected each once")
    return Sources(names, DatasetRecordings(dataset), f"dataset {dataset._fingerprint}")


def state_of_files(path):
    """
    A hash of the sizes and times of last change of a recording's files, of all that a WFDB header names: another
    where they have been written again.
    """
    digest, waiting, seen = hashlib.sha256(), [Path(path)], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            status = file.stat()
        except OSError:  # one that comes later makes a difference, too
            digest.update(f"{file.name} is missing\n".encode())
            continue
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        if file.suffix.lower() == ".hea":
            segments = [f"{name}.hea" for name in segments_of(file)]
            waiting += sorted(file.parent / name for name in segments or files_of_header(file))
    return digest.hexdigest()[:16]


def list_recordings(folder, pattern="**/*", leave_out=None):
    """
    Paths of the recordings in `folder`, relative to it and sorted.

    Of a recording with a header, the header; of a multi-segment one, the header of the whole. Other files of a known
    kind are taken for recordings: a table of labels among them will fail and be listed so. Hidden files, and what
    lies in the folder `leave_out`, are none.
    """
    files = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in FILE_ENDINGS and path.is_file())
    files = [path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    if leave_out is not None:
        files = [path for path in files if leave_out.resolve() not in path.resolve().parents]
    headers = [path for path in files if path.suffix.lower() == ".hea"]
    segments = {header.with_name(f"{name}.hea") for header in headers for name in segments_of(header)}
    return [
        path.relative_to(folder).as_posix()
        for path in files
        if path not in segments and (path.suffix.lower() == ".hea" or not path.with_suffix(".hea").is_file())
    ]


def each_of_many(folder, names):
    """The names, those of files that hold many recordings replaced by one for each, FILE#RECORD; and where those are:
    {name: (file, place)}. A file that cannot be opened keeps its name, under which it will fail."""
    all_names, of_many = [], {}
    for name in names:
        each = ()
        if may_hold_many(folder / name):
            with suppress(ValueError, OSError, ImportError):
                each = open_recordings(folder / name).names
        if len(each) > 1:
            of_many.update({f"{name}#{record}": (name, place) for place, record in enumerate(each)})
        all_names += [f"{name}#{record}" for record in each] if len(each) > 1 else [name]
    return all_names, of_many


def count_others(folder, names, pattern="**/*", leave_out=None):
    """
    The files of `folder` that are no recordings of the list `names` and no part of one, as "3 .dcm, 1 .csv beside a
    header", the most frequent first; hidden ones, and what lies in the folder `leave_out`, are not counted.
    """
    taken, stems = set(names), {name.removesuffix(".hea") for name in names if name.endswith(".hea")}
    found = Counter()
    headers = {}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
        if name in taken or is_hidden or not path.is_file():
            continue
        if leave_out is not None and leave_out.resolve() in path.resolve().parents:
            continue
        suffix = path.suffix.lower()
        if suffix == ".hea":  # a segment of another
            continue
        if path.parent not in headers:
            headers[path.parent] = files_of_headers(path.parent)
        if path.name in headers[path.parent]:
            continue
        is_beside = path.with_suffix(".hea").is_file() or name.removesuffix(path.suffix) in stems
        found[f"{suffix or 'without ending'}{' beside a header' if is_beside else ''}"] += 1
    return ", ".join(f"{count} {kind}" for kind, count in found.most_common())


def files_of_headers(folder):
    """Names of the signal files that the WFDB headers of a folder name."""
    return {name for header in folder.glob("*.hea") for name in files_of_header(header)}


def files_of_header(header):
    lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[0] for line in lines[1:] if line.strip() and not line.startswith("#")}


def segments_of(header):
    """Names of the records that a multi-segment WFDB header (its first line: NAME/SEGMENTS ...) puts together."""
    lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [line[0] for line in lines[1:]] if lines and "/" in lines[0][0] else []


# -- from recordings to results ---------------------------------------------------------------------------------------


@dataclass
class Piece:
    """A part of one recording on its way from the reader to the model: first `scored`, then `windows`, then `end`."""

    index: int
    scored: ScoredRecording | None = None
    windows: tuple = ()
    end: bool = False
    state: str = ""  # of the recording's files before they were read; comes with the end
    failure: str | None = None


class Reading(torch.utils.data.IterableDataset):
    """
    The recordings of one process in pieces of a batch at most, so that memory does not grow with their length.

    Iterating gives lists of pieces with a batch of windows between them: what goes from process to process one by one
    takes longer on its way than in the making.
    """

    def __init__(self, sources, indices, pipeline, options):
        self.sources, self.indices, self.pipeline, self.options = sources, indices, pipeline, options

    def __iter__(self) -> Iterator[list[Piece]]:
        together, num_windows = [], 0
        for piece in self._pieces():
            together.append(piece)
            num_windows += len(piece.windows)
            if num_windows >= self.options.batch_size or len(together) >= MOST_PIECES:
                yield together
                together, num_windows = [], 0
        yield together

    def _pieces(self):
        worker = torch.utils.data.get_worker_info()
        opened = {}  # the file of many recordings that was read last
        for index in self.indices if worker is None else self.indices[worker.id :: worker.num_workers]:
            try:
                state = self.sources.state(index)
                source, stated = self.sources[index]
                given = {name: stated.get(name, getattr(self.options, name)) for name in STATED}
                if isinstance(source, tuple):
                    path, place = source
                    if path not in opened:
                        opened = {path: self.pipeline.recordings(path, **given)}
                    source = opened[path][place]
                windows, _ = self.pipeline.preprocess(source, on_doubt=self.options.on_doubt, **given)
                yield Piece(index, scored=ScoredRecording(windows))
                for some in in_batches(windows, self.options.batch_size):
                    yield Piece(index, windows=some)
                yield Piece(index, end=True, state=state)
            except (ValueError, OSError) as error:
                yield Piece(index, failure=str(error))
            except Exception as error:  # what a damaged file makes a library raise is that recording's failure alone
                yield Piece(index, failure=f"{type(error).__name__}: {error}")


def classify(pipeline, reading, options):
    """(index, row of the table or reason of failure) for each recording, in the order in which they are finished."""
    loader = torch.utils.data.DataLoader(
        reading, batch_size=None, num_workers=options.num_workers, worker_init_fn=end_with_parent
    )
    recordings, waiting, num_windows = {}, [], 0
    for piece in chain.from_iterable(loader):
        if piece.failure is not None:
            recordings.pop(piece.index, None)
            yield piece.index, piece.failure
        elif piece.scored is not None:
            recordings[piece.index] = piece.scored
        else:
            if piece.index in recordings:
                kept = recordings[piece.index]
                piece.windows = tuple(window for window in piece.windows if not kept.leaves_out(window))
            waiting.append(piece)
            num_windows += len(piece.windows)
        if num_windows >= options.batch_size:
            yield from score(pipeline, waiting, recordings, options.batch_size)
            waiting, num_windows = [], 0
    yield from score(pipeline, waiting, recordings, options.batch_size)


def in_batches(items, size):
    items = iter(items)
    while some := tuple(islice(items, size)):
        yield some


def score(pipeline, pieces, recordings, batch_size):
    """Runs the waiting windows through the model; yields what came to its end."""
    pieces = [piece for piece in pieces if piece.index in recordings]  # the others failed further on
    windows = [window for piece in pieces for window in piece.windows]
    scores = iter(
        [row for some in in_batches(windows, batch_size) for row in pipeline.forward(collate(some))["scores"].numpy()]
    )
    for piece in pieces:
        for window in piece.windows:
            recordings[piece.index].add(window, next(scores))
        if piece.end:
            yield piece.index, as_row(pipeline, recordings.pop(piece.index), piece.state)


def as_row(pipeline, scored, state):
    try:
        result = pipeline.postprocess(scored)
    except ValueError as error:  # gaps in every window
        return str(error)
    if not result["findings"]:
        return f"no findings: {result['refused']}"
    return {
        "seconds": scored.duration,
        **{f"score_{finding['label']}": finding["score"] for finding in result["findings"]},
        "findings": [finding["label"] for finding in result["findings"] if finding["present"]],
        "timeline": result["timeline"],
        "notes": result["notes"],
        "source_state": state,
    }


# -- what is written --------------------------------------------------------------------------------------------------


class Shards:
    """The table in DIR: parquet files of up to `shard_size` rows, each written whole or not at all."""

    def __init__(self, folder, labels, made_with, shard_size):
        self.folder, self.shard_size, self.rows = folder, shard_size, []
        stretch = {"start": pyarrow.float64(), "end": pyarrow.float64(), "label": pyarrow.string()}
        self.schema = pyarrow.schema(
            [
                ("record", pyarrow.string()),
                ("seconds", pyarrow.float64()),
                *((f"score_{label}", pyarrow.float32()) for label in labels),
                ("findings", pyarrow.list_(pyarrow.string())),
                ("timeline", pyarrow.list_(pyarrow.struct({**stretch, "score": pyarrow.float32()}))),
                ("notes", pyarrow.list_(pyarrow.string())),
                ("source_state", pyarrow.string()),
            ],
            metadata=made_with,
        )
        folder.mkdir(parents=True, exist_ok=True)

    def done(self):
        """Names of the recordings in the table; ValueError where it was made with another model, input or argument."""
        names = set()
        for path in self.folder.glob("scores-*.parquet"):
            self.check(path)
            names.update(pyarrow.parquet.read_table(path, columns=["record"])["record"].to_pylist())
        return names

    def check(self, path):
        written = pyarrow.parquet.read_schema(path)
        theirs, ours = written.metadata or {}, self.schema.metadata
        if written.names != self.schema.names or theirs.get(b"model") != ours[b"model"]:
            raise ValueError(
                f"{path} was written with another model (weights, thresholds or reading differ); expected an "
                "empty folder or one of this model"
            )
        for name in ours:
            if theirs.get(name) != ours[name]:
                was, now = (some.get(name, b"nothing").decode() for some in (theirs, ours))
                raise ValueError(
                    f"{path} was written with another {name.decode()}: {was}, now {now}; expected an empty folder or "
                    "one of the same"
                )

    def drop_changed(self, state_by_name):
        """
        Takes out the rows of recordings whose files are no longer those that were read, before any process looks.

        Args:
            state_by_name (Callable[[list[str]], dict[str, str]]): of the names that are still in the input.
        """
        for path in sorted(self.folder.glob("scores-*.parquet")):
            self.check(path)
            rows = pyarrow.parquet.read_table(path, columns=["record", "source_state"]).to_pylist()
            now = state_by_name([row["record"] for row in rows])
            keep = [now.get(row["record"], row["source_state"]) == row["source_state"] for row in rows]
            if not any(keep):
                path.unlink()
            elif not all(keep):
                table = pyarrow.parquet.read_table(path).filter(pyarrow.array(keep))
                with atomic_path(path) as temporary:
                    pyarrow.parquet.write_table(table.cast(self.schema), temporary)

    def add(self, row):
        self.rows.append(row)
        if len(self.rows) == self.shard_size:
            self.write()

    def write(self):
        if self.rows:
            # no name of a recording: one that is classified anew must not take the place of its earlier neighbours
            with atomic_path(self.folder / f"scores-{uuid4().hex[:16]}.parquet") as temporary:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows, self.schema), temporary)
            self.rows = []

    def remove_half_written(self):
        for path in (*self.folder.glob(".scores-*"), *self.folder.glob(".failed-*"), self.folder / "failed.csv"):
            path.unlink(missing_ok=True)


def write_table(path, failed):
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("record", "reason"), *failed])


def gather_failed(folder, num_processes):
    """Makes one failed.csv of those of the processes."""
    failed = []
    for path in [folder / f".failed-{rank}.csv" for rank in range(num_processes)]:
        with path.open(newline="", encoding="utf-8") as file:
            failed += [tuple(row) for row in csv.reader(file)][1:]
        path.unlink()
    write_table(folder / "failed.csv", sorted(failed))
    return failed


if __name__ == "__main__":
    run(main)
