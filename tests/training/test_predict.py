"""Offline inference: every recording once, whatever the number of processes and however often it is killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from filelock import FileLock

from hf_ecgmamba import (
    EcgClassificationPipeline,
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForSequenceClassification,
)
from hf_ecgmamba.pipeline_ecg_classification import load_pipeline
from tests.hf_ecgmamba.signals import heart
from tests.hf_ecgmamba.test_recording_arrays import write_code15
from tests.training.machines import launch, outputs_of
from training.predict import PredictArguments, count_others, find_sources, list_recordings, main

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "predict.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        sampling_rate=50,
        window_seconds=5.0,
        encoder_strides=(4, 4),
        encoder_kernel_sizes=(9, 5),
        id2label={0: "AF", 1: "PVC", 2: "STE"},
        problem_type="multi_label_classification",
        thresholds=[0.5, 0.45, 0.55],
    )
    folder = tmp_path_factory.mktemp("model")
    EcgMambaForSequenceClassification(config).save_pretrained(folder)
    EcgMambaFeatureExtractor.from_model_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(shared_data, tmp_path_factory):
    """Forty real recordings, two of them broken, and a long one."""
    folder = tmp_path_factory.mktemp("recordings")
    source = shared_data / "ecg" / "cinc2021"
    for header in sorted(source.glob("*.hea"))[:40]:
        shutil.copy(header, folder)
        shutil.copy(header.with_suffix(".mat"), folder)
    headers = sorted(folder.glob("*.hea"))
    headers[3].with_suffix(".mat").unlink()
    (folder / "broken.csv").write_text("patient,age\nA,54\n")
    time_axis = np.arange(120 * 50)
    (folder / "holter").mkdir()
    np.savez(
        folder / "holter" / "long.npz",
        array=np.sin(time_axis * np.arange(1, 13)[:, None] / 40).astype(np.float32),
        sampling_rate=50,
        units="mV",
    )
    return folder


@pytest.fixture(scope="module")
def alone(model, recordings, tmp_path_factory):
    """The table of a single process."""
    output = tmp_path_factory.mktemp("alone")
    main(flags(model, recordings, output))
    return output


def flags(model, recordings, output, *more):
    given = {"model": model, "input": recordings, "output": output, "shard_size": 6, "batch_size": 8}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + list(more)


def table(output):
    frame = pd.concat([pd.read_parquet(path) for path in output.glob("scores-*.parquet")])
    return frame.sort_values("record").reset_index(drop=True)


def failures(output):
    with (output / "failed.csv").open(newline="") as file:
        return {row["record"]: row["reason"] for row in csv.DictReader(file)}


def assert_same_table(one, other):
    one, other = table(one), table(other)
    assert list(one.record) == list(other.record)
    scores = [name for name in one if name.startswith("score_")]
    assert np.allclose(one[scores], other[scores], atol=1e-6)
    assert [list(x) for x in one.findings] == [list(x) for x in other.findings]
    assert [list(x) for x in one.notes] == [list(x) for x in other.notes]
    assert [len(x) for x in one.timeline] == [len(x) for x in other.timeline]


def test_rows_are_what_the_pipeline_says(model, recordings, alone):
    rows = table(alone)
    assert len(rows) == 40 and rows.record.is_unique
    reader = EcgMambaFeatureExtractor.from_pretrained(model)
    pipeline = EcgClassificationPipeline(
        model=EcgMambaForSequenceClassification.from_pretrained(model), feature_extractor=reader, device="cpu"
    )
    for row in [rows.iloc[0], rows.iloc[20], rows.iloc[-1]]:
        result = pipeline(str(recordings / row.record))
        for finding in result["findings"]:
            assert row[f"score_{finding['label']}"] == pytest.approx(finding["score"], abs=1e-6)
        assert list(row.findings) == [f["label"] for f in result["findings"] if f["present"]]
        assert [stretch["label"] for stretch in row.timeline] == [s["label"] for s in result["timeline"]]
        assert list(row.notes) == result["notes"]
    long = rows[rows.record == "holter/long.npz"].iloc[0]
    assert long.seconds == 120 and len(long.timeline) > 0


def test_the_table_loads_as_documented(alone, tmp_path):
    files = str(alone / "scores-*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path).to_pandas()
    assert sorted(loaded.record) == list(table(alone).record)


def test_failures_are_listed_with_their_reason(recordings, alone):
    lost = sorted(path.name for path in recordings.glob("*.hea") if not path.with_suffix(".mat").exists())
    reasons = failures(alone)
    assert sorted(reasons) == sorted([*lost, "broken.csv"])
    assert ".mat" in reasons[lost[0]] and reasons["broken.csv"]
    assert not set(reasons) & set(table(alone).record)


def test_a_second_run_does_nothing(model, recordings, alone):
    before = {path: path.stat().st_mtime_ns for path in alone.glob("scores-*")}
    main(flags(model, recordings, alone))
    assert {path: path.stat().st_mtime_ns for path in alone.glob("scores-*")} == before
    assert len(failures(alone)) == 2


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def test_killed_and_started_again_has_every_record_once(model, recordings, alone, tmp_path):
    process = start([sys.executable, str(SCRIPT), *flags(model, recordings, tmp_path)])
    while not list(tmp_path.glob("scores-*")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert 0 < len(table(tmp_path)) < 40 and not (tmp_path / "failed.csv").exists()
    main(flags(model, recordings, tmp_path))
    assert_same_table(tmp_path, alone)
    assert failures(tmp_path) == failures(alone)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_give_the_same_table(model, recordings, alone, tmp_path, machines):
    outputs = outputs_of(launch(machines, SCRIPT, *flags(model, recordings, tmp_path)))
    assert "process 1 of 2" in outputs[0]
    assert_same_table(tmp_path, alone)
    assert failures(tmp_path) == failures(alone)


def test_a_dataset_gives_the_same_scores(model, recordings, alone, tmp_path):
    import wfdb

    names = list(table(alone).record[:4])
    rows = []
    for name in names:
        signal, fields = wfdb.rdsamp(str(recordings / name.removesuffix(".hea")))
        rows.append(
            {
                "record": name,
                "array": signal.T.astype(np.float32),
                "sampling_rate": float(fields["fs"]),
                "leads": fields["sig_name"],
                "units": "mV",
            }
        )
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "dataset")
    main(flags(model, tmp_path / "dataset", tmp_path / "scores", "--num_workers", "0"))
    ours, theirs = table(tmp_path / "scores"), table(alone)[:4]
    scores = ["score_AF", "score_PVC", "score_STE"]
    assert list(ours.record) == names
    assert np.allclose(ours[scores], theirs[scores], atol=1e-4)


def test_what_counts_as_a_recording(shared_data):
    names = list_recordings(shared_data / "ecg" / "odd" / "wfdb" / "multi-segment")
    assert "041s/041s.hea" in names  # the whole, not its segments
    assert not {"041s/041s01.hea", "041s/041s02.hea"} & set(names)
    assert not [name for name in names if name.endswith(".dat")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", ""], "--input is missing"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--pattern", "*.edf"], r"holds no recording that fits \*\.edf; expected names ending in \.hea"),
        (["--input", __file__], "a file; expected a folder"),
    ],
)
def test_bad_arguments_are_named(model, recordings, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        main(flags(model, recordings, tmp_path, *more))


def test_another_models_table_is_not_mixed_in(recordings, alone, model, tmp_path):
    """Wherever the model lies, and whatever its folder is called, its weights and thresholds tell it."""
    shutil.copytree(model, tmp_path / "moved")
    before = len(list(alone.glob("scores-*")))
    main(flags(tmp_path / "moved", recordings, alone))
    assert len(list(alone.glob("scores-*"))) == before

    moved = EcgMambaForSequenceClassification.from_pretrained(tmp_path / "moved")
    for change in (lambda: setattr(moved.config, "thresholds", [0.5, 0.45, 0.5]), moved.classifier.bias.data.zero_):
        change()
        moved.save_pretrained(tmp_path / "moved")
        with pytest.raises(ValueError, match="written with another model"):
            main(flags(tmp_path / "moved", recordings, alone))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Columns of numbers that say nothing of themselves; the last 20 of 60 s were never recorded."""
    folder = tmp_path_factory.mktemp("bare")
    signal = np.sin(np.arange(60 * 50)[:, None] * np.arange(1, 14) / 40) * 1000
    signal[40 * 50 :] = np.nan
    np.savetxt(folder / "patient.csv", signal, delimiter=",", fmt="%.3f")
    return folder


def test_what_recordings_leave_open_can_be_given(model, bare, tmp_path):
    main(flags(model, bare, tmp_path / "scores", "--num_workers", "0"))
    assert failures(tmp_path / "scores")["patient.csv"].startswith("patient does not state its sampling rate")
    leads = [*EcgMambaConfig().leads, "V7"]
    given = ("--sampling_rate", "50", "--units", "uV", "--num_workers", "0", "--on_doubt", "note", "--leads", *leads)
    main(flags(model, bare, tmp_path / "scores", *given))
    row = table(tmp_path / "scores").iloc[0]
    assert row.seconds == 60 and failures(tmp_path / "scores") == {}
    assert any("left out: " in note for note in row.notes) and "not used: V7" in row.notes

    # the same of a data set, each row with its own
    path = str(bare / "patient.csv")
    stated = {"sampling_rate": 50.0, "units": "uV", "leads": leads}
    rows = [{"path": path, **stated}, {"path": path, "sampling_rate": 25.0}, {"path": path, "sampling_rate": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "dataset")
    given = ("--num_workers", "0", "--on_doubt", "note", "--units", "uV", "--leads", *leads)
    main(flags(model, tmp_path / "dataset", tmp_path / "of_rows", *given))
    rows = table(tmp_path / "of_rows")
    assert list(rows.seconds) == [60, 120]
    assert rows.iloc[0][["score_AF", "score_PVC"]].tolist() == row[["score_AF", "score_PVC"]].tolist()
    assert "does not state its sampling rate" in failures(tmp_path / "of_rows")["000000002"]


def test_what_a_job_writes_is_no_input_of_the_next(tmp_path):
    for name in ("b.csv", "a.csv", ".hidden.csv", "out/failed.csv", "out/.failed-1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("0.1\n")
    assert list_recordings(tmp_path, leave_out=tmp_path / "out") == ["a.csv", "b.csv"]
    assert list_recordings(tmp_path / "out") == ["failed.csv"]
    with pytest.raises(ValueError, match="the input folder itself"):
        find_sources(PredictArguments(model="m", input=str(tmp_path), output=str(tmp_path)))
    outside = find_sources(PredictArguments(model="m", input=str(tmp_path / "out"), output=str(tmp_path)))
    assert outside.names == ["failed.csv"]


def test_what_is_passed_over_is_counted(tmp_path):
    for name in ("a.hea", "a.dat", "a.csv", "b.xyz", "c.xyz", "d.doc", "README", ".hidden", "out/e.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a 1 100\na.dat 16\n" if name == "a.hea" else "x")
    counted = count_others(tmp_path, ["a.hea"], leave_out=tmp_path / "out")
    assert counted == "2 .xyz, 1 without ending, 1 .csv beside a header, 1 .doc"


def test_a_signal_in_doubt_is_listed_as_failed(model, tmp_path):
    leads = EcgMambaConfig().leads
    (tmp_path / "in").mkdir()
    swapped = heart(500)[[1, 0, *range(2, 12)]]
    for name, values in (("flat", np.zeros((12, 500))), ("good", heart(500)), ("swapped", swapped)):
        np.savez(tmp_path / "in" / f"{name}.npz", signal=values, fs=100, leads=leads)
    main(flags(model, tmp_path / "in", tmp_path / "out", "--num_workers", "0"))
    assert list(table(tmp_path / "out").record) == ["good.npz"]
    failed = failures(tmp_path / "out")
    assert failed["flat.npz"].startswith("no findings: every lead is flat")
    assert "I and II are swapped" in failed["swapped.npz"]
    main(flags(model, tmp_path / "in", tmp_path / "noted", "--num_workers", "0", "--on_doubt", "note"))
    assert sorted(table(tmp_path / "noted").record) == ["flat.npz", "good.npz", "swapped.npz"]
    assert failures(tmp_path / "noted") == {}


def beat(folder, name, loud=1.0):
    np.savez(folder / name, signal=loud * heart(500), fs=100, leads=EcgMambaConfig().leads)


@pytest.fixture
def three(tmp_path):
    """A folder of three recordings, and where its table goes."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        beat(tmp_path / "in", f"{name}.npz")
    return tmp_path / "in", tmp_path / "out"


def scores_of(output):
    return {row.record: row.score_AF for row in table(output).itertuples()}


def test_a_changed_file_is_classified_anew(model, three):
    source, output = three
    options = ("--num_workers", "0", "--shard_size", "2")
    main(flags(model, source, output, *options))
    before = scores_of(output)
    beat(source, "a.npz", loud=1.5)
    main(flags(model, source, output, *options))
    after = scores_of(output)
    assert len(table(output)) == 3 and after["a.npz"] != before["a.npz"]
    assert {name: after[name] for name in ("b.npz", "c.npz")} == {name: before[name] for name in ("b.npz", "c.npz")}
    # and back: a shard of that first recording has been there already
    beat(source, "a.npz")
    beat(source, "d.npz")
    (source / "c.npz").unlink()
    main(flags(model, source, output, *options))
    assert {**before, "d.npz": before["a.npz"]} == scores_of(output)  # what was found in c is not lost


def test_a_signal_that_changes_behind_its_header_is_classified_anew(model, shared_data, tmp_path):
    first, second = sorted((shared_data / "ecg" / "cinc2021").glob("*.hea"))[:2]
    (tmp_path / "in").mkdir()
    for header in (first, second):
        for path in (header, header.with_suffix(".mat")):
            shutil.copy(path, tmp_path / "in")
    main(flags(model, tmp_path / "in", tmp_path / "out", "--num_workers", "0"))
    before = table(tmp_path / "out").set_index("record")
    changed = tmp_path / "in" / first.with_suffix(".mat").name
    signal = np.frombuffer(changed.read_bytes(), np.int16, offset=24)
    changed.write_bytes(changed.read_bytes()[:24] + (signal // 2).tobytes())
    main(flags(model, tmp_path / "in", tmp_path / "out", "--num_workers", "0"))
    after = table(tmp_path / "out").set_index("record")
    assert after.score_AF[first.name] != before.score_AF[first.name]
    assert after.loc[second.name].score_AF == before.loc[second.name].score_AF


@pytest.mark.parametrize(
    ("more", "named"),
    [(("--sampling_rate", "200"), "sampling_rate: null, now 200"), (("--units", "uV"), 'units: null, now "uV"'),
     (("--leads", "I", "II"), "leads: null, now"), (("--on_doubt", "note"), "another model")],
)  # fmt: skip
def test_a_table_is_not_continued_with_other_arguments(model, three, more, named):
    source, output = three
    main(flags(model, source, output, "--num_workers", "0"))
    with pytest.raises(ValueError, match=named):
        main(flags(model, source, output, "--num_workers", "0", *more))
    assert len(table(output)) == 3


def test_a_table_is_not_continued_with_another_input(model, three, tmp_path):
    source, output = three
    main(flags(model, source, output, "--num_workers", "0"))
    shutil.copytree(source, tmp_path / "others")
    with pytest.raises(ValueError, match=r"another input: .*in, now .*others"):
        main(flags(model, tmp_path / "others", output, "--num_workers", "0"))
    rows = [{"array": loud * heart(500), "sampling_rate": 100.0, "leads": list(EcgMambaConfig().leads), "units": "mV"}
            for loud in (1.0, 1.5)]  # fmt: skip
    for name, row in zip(("one", "two"), rows, strict=True):
        datasets.Dataset.from_list([row]).save_to_disk(tmp_path / name)
    main(flags(model, tmp_path / "one", tmp_path / "rows", "--num_workers", "0"))
    main(flags(model, tmp_path / "one", tmp_path / "rows", "--num_workers", "0"))
    with pytest.raises(ValueError, match="another input: dataset"):
        main(flags(model, tmp_path / "two", tmp_path / "rows", "--num_workers", "0"))


def test_one_run_at_a_time(model, three, monkeypatch):
    source, output = three
    output.mkdir()
    monkeypatch.setattr("training.predict.LOCK_SECONDS", 0.1)
    with FileLock(output / "run.lock"), pytest.raises(ValueError, match="another run is writing to"):
        main(flags(model, source, output, "--num_workers", "0"))
    assert not list(output.glob("scores-*"))
    main(flags(model, source, output, "--num_workers", "0"))
    assert len(table(output)) == 3


@pytest.mark.slow
def test_overlapping_runs_write_each_recording_once(model, recordings, alone, tmp_path):
    runs = [start([sys.executable, str(SCRIPT), *flags(model, recordings, tmp_path)]) for _ in range(2)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    # the second waits a little, and either is refused or finds all done
    assert 0 in [run.returncode for run in runs]
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0 or "another run is writing to" in output
    assert_same_table(tmp_path, alone)


@pytest.mark.skipif(sys.platform == "win32", reason="a parent is killed with a signal")
@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_reading_worker_ends_with_its_parent(tmp_path, start_method):
    """However long the recording takes that it is in the middle of."""
    code = """
import multiprocessing, os, signal, sys, time
import torch
from training.launch import end_with_parent

class Long(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield os.getpid()
        time.sleep(300)

if __name__ == "__main__":
    torch.multiprocessing.set_start_method(sys.argv[1])
    loader = torch.utils.data.DataLoader(Long(), batch_size=None, num_workers=1, worker_init_fn=end_with_parent)
    reading = iter(loader)
    print(next(reading), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "read.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(tmp_path / "read.py"), start_method]
    with (tmp_path / "said").open("w") as said:  # no pipe: the worker would hold its end
        killed = subprocess.run(command, env=environment, stdout=said, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    worker, deadline = int((tmp_path / "said").read_text()), time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker goes on without its parent"
        time.sleep(0.1)


def test_a_file_of_many_recordings_has_a_row_for_each(model, tmp_path):
    folder, output = tmp_path / "in" / "parts", tmp_path / "out"
    folder.mkdir(parents=True)
    signals = write_code15(folder / "exams_part0.hdf5")
    write_code15(folder / "exams_part1.hdf5", lengths=(4000, 0), exam_ids=(77, 0))
    np.save(folder / "one.npy", heart(4000, rate=400))
    (folder / "broken.h5").write_bytes(b"no HDF5")
    arguments = ["--model", str(model), "--input", str(tmp_path / "in"), "--output", str(output), "--num_workers", "2"]
    main([*arguments, "--sampling_rate", "400"])
    rows = table(output).set_index("record")
    names = [f"parts/exams_part0.hdf5#{exam}" for exam in (1169160, 2873686, 168405)]
    assert sorted(rows.index) == sorted([*names, "parts/exams_part1.hdf5#77", "parts/one.npy"])
    pipeline = load_pipeline(str(model), device="cpu")
    for name, of_exam in zip(names, signals, strict=True):
        assert rows.seconds[name] == pytest.approx(of_exam.shape[1] / 400)
        for finding in pipeline(of_exam.astype(np.float32), sampling_rate=400)["findings"]:
            assert rows[f"score_{finding['label']}"][name] == pytest.approx(finding["score"], abs=1e-5)
    reasons = failures(output)
    assert "every lead is flat" in reasons.pop("parts/exams_part1.hdf5#0")
    assert "not an HDF5 file" in reasons.pop("parts/broken.h5")
    assert reasons == {}


def test_without_a_model_the_small_network_answers(recordings, tmp_path):
    main(["--input", str(recordings), "--output", str(tmp_path)])
    came = table(tmp_path)
    assert len(came) and {"score_AFIB", "score_CLBBB", "score_NORM"} <= set(came.columns)
