"""A folder of clips to features, to training, to answers about a clip: the same numbers all the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, ClipReader, checked_front_ends
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from tests.hf_mse_adapter.odd_clips import voice, write
from training.data.clips import Extraction, extract, load_clips, read_table
from training.extract_clips import main as extract_clips
from training.run_msa import main as run_msa

ROOT = Path(__file__).resolve().parents[2]


def write_table(folder, rows):
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten short clips with a face and a voice, one without a face, one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(11):
        name = f"clip{number}.mp4"
        loud = 1 + number % 2
        write(folder / name, num_frames=8, sound=loud * voice(0.9), kind="none" if number == 10 else "face")
        split = "valid" if number in (2, 3) else "test" if number in (4, 5) else "train"
        rows.append({"clip": name, "label": 1.5 - loud, "text": f"this is number {number}", "split": split})
    (folder / "broken.mp4").write_text("hello")
    rows.append({"clip": "broken.mp4", "label": 0.0, "text": "", "split": "train"})
    write_table(folder, rows)
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    run_msa(
        [
            "--dataset",
            "clips",
            "--data_path",
            str(folder),
            "--clip_cache",
            str(output / "cache"),
            "--clip_processes",
            "1",
            "--label_range",
            "-1",
            "1",
            "--seeds",
            "1",
            "--num_train_epochs",
            "1",
            "--output_dir",
            str(output),
            "--tiny_hidden_size",
            "32",
            "--use_cpu",
            "true",
            "--per_device_train_batch_size",
            "4",
        ]
    )
    return output


def test_a_model_and_its_features_belong_together(trained, folder):
    """What training read of a clip is what the published folder reads of it."""
    published = trained / "seed_1"
    processor = MseProcessor.from_pretrained(published)
    assert processor.front_ends == checked_front_ends(DEFAULT_FRONT_ENDS)
    assert (published / "face_landmarks.safetensors").is_file() and (published / "face_landmarks.NOTICE").is_file()
    pipe = MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(published), processor=processor, device="cpu"
    )
    extraction = Extraction(processor.front_ends, ("text", "audio", "vision"), str(trained / "cache"))
    splits = load_clips(folder, "regression", extraction, progress=False)
    for row in splits["test"]:
        given = pipe({name: row[name] for name in ("text", "audio", "vision")})
        answer = pipe({"clip": str(folder / row["id"]), "text": row["text"]})
        assert answer.pop("made_from")["given"] == ["text"] and answer == given
    assert len(splits["train"]) == 7 and "broken.mp4" in (trained / "cache" / "failed.csv").read_text()


def test_features_are_alike_alone_in_a_batch_and_over_processes(folder, tmp_path):
    rows = [row for row in read_table(folder) if "broken" not in row.id]
    extraction = Extraction(DEFAULT_FRONT_ENDS, ("audio", "vision"), str(tmp_path / "two"))
    found, failed = extract(rows, extraction, num_processes=2, progress=False)
    assert not failed
    reader = ClipReader(DEFAULT_FRONT_ENDS)
    for row in rows[::4]:
        alone = reader.read(row.path, wanted=("audio", "vision"))
        np.testing.assert_array_equal(found[row.id]["audio"], alone.audio.values)
        if alone.vision.values is None:
            assert found[row.id]["vision"] is None
        else:
            # other threads may sum in another order
            np.testing.assert_allclose(found[row.id]["vision"], alone.vision.values, atol=1e-3)


def test_extraction_goes_on_after_it_was_killed(folder, tmp_path):
    output = tmp_path / "features"
    command = [sys.executable, "training/extract_clips.py", str(folder), "--output", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(12000):
        if any((output / "cache").glob("[!.]*.npz")) or process.poll() is not None:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (output / "cache").glob("[!.]*.npz")}
    assert before and not (output / "train.parquet").exists()
    extract_clips([str(folder), "--output", str(output)])
    for path, modified in before.items():
        assert path.stat().st_mtime_ns == modified
    assert not list((output / "cache").glob(".*.npz"))
    tables = {split: pyarrow.parquet.read_table(output / f"{split}.parquet") for split in ("train", "valid", "test")}
    assert {split: len(table) for split, table in tables.items()} == {"train": 7, "valid": 2, "test": 2}
    without_face = {row["id"]: row for row in tables["train"].to_pylist()}["clip10.mp4"]
    assert without_face["vision"] is None and "no face" in json.loads(without_face["made_from"])["missing"]["vision"]
    assert "broken.mp4" in (output / "failed.csv").read_text()
    assert json.loads((output / "front_ends.json").read_text()) == checked_front_ends(DEFAULT_FRONT_ENDS)


def test_the_cache_knows_content_and_front_ends(folder, tmp_path):
    row = next(row for row in read_table(folder) if row.id == "clip0.mp4")
    base = Extraction(DEFAULT_FRONT_ENDS, ("audio",), str(tmp_path))
    other = Extraction({"audio": {"type": "log_mel", "window": 4}}, ("audio",), str(tmp_path))
    copy = type(row)(**{**row.__dict__, "path": str(shutil.copy(row.path, tmp_path / "copy.mp4"))})
    part = type(row)(**{**row.__dict__, "start": 0.1})
    assert base.place(row) == base.place(copy)
    assert len({base.place(row), other.place(row), base.place(part)}) == 3


def test_splits_are_drawn_by_dialogue_and_the_same_each_time(folder, tmp_path):
    for number in range(6):
        shutil.copy(folder / "clip0.mp4", tmp_path / f"{number}.mp4")
    rows = [{"clip": f"{n}.mp4", "label": "a", "dialogue": f"d{n // 2}", "start": 0.0, "end": 0.5} for n in range(6)]
    write_table(tmp_path, rows)
    table = read_table(tmp_path)
    assert table == read_table(tmp_path) and {row.split for row in table} == {"train", "valid", "test"}
    assert all(one.split == other.split for one in table for other in table if one.dialogue == other.dialogue)
    assert table[0].id == "0.mp4@0-0.5" and table[0].end == 0.5


@pytest.mark.parametrize(
    "row, message",
    [
        ({"clip": "clip0.mp4"}, r"expected \['label'\] as well"),
        ({"clip": "clip0.mp4", "label": "1", "emotion": "x"}, r"has the columns \['emotion'\]"),
        ({"clip": "clip99.mp4", "label": "1"}, "line 2: there is no clip"),
        ({"clip": "clip0.mp4", "label": "1", "split": "training"}, "split is 'training'"),
        ({"clip": "clip0.mp4", "label": "1", "end": "soon"}, "end is 'soon'; expected seconds"),
    ],
)
def test_bad_tables_are_named(row, message, folder, tmp_path):
    shutil.copy(folder / "clip0.mp4", tmp_path)
    write_table(tmp_path, [row])
    with pytest.raises((ValueError, OSError), match=message):
        read_table(tmp_path)
