"""The command: a table for a person, json for a machine, one line and exit code 2 for what cannot work."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ecgmamba.__main__ import main
from hf_ecgmamba.configuration_ecgmamba import EcgMambaConfig
from hf_ecgmamba.feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from hf_ecgmamba.modeling_ecgmamba import EcgMambaForMaskedModeling, EcgMambaForSequenceClassification
from hf_ecgmamba.pipeline_ecg_classification import EcgClassificationPipeline
from hf_ecgmamba.publishing import save_for_hub

LABELS = {0: "NORM", 1: "AFIB"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II"), hidden_size=16, num_hidden_layers=1, d_state=4, id2label=LABELS, thresholds=[0.0, 1.0],
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", window_seconds=4.0,
    )  # fmt: skip
    model = EcgMambaForSequenceClassification(config)
    extractor = EcgMambaFeatureExtractor.from_model_config(config)
    return save_for_hub(model, extractor, tmp_path_factory.mktemp("model"))


@pytest.fixture
def file(tmp_path):
    signal = np.random.default_rng(0).normal(size=(2, 400)).cumsum(axis=1).astype(np.float32) * 0.05
    np.savez(tmp_path / "patient.npz", signal=signal, sampling_rate=100, leads=["I", "II"], units="mV")
    return tmp_path / "patient.npz"


def test_json_is_what_the_pipeline_says(model_folder, file, capsys):
    assert main([str(file), "--model", str(model_folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    ecg = EcgClassificationPipeline(
        model=EcgMambaForSequenceClassification.from_pretrained(model_folder),
        feature_extractor=EcgMambaFeatureExtractor.from_pretrained(model_folder),
        device="cpu",
    )
    assert printed == {"file": str(file), "model": str(model_folder), **ecg(str(file))}


def test_table_for_a_person_and_picture(model_folder, file, tmp_path, capsys):
    picture = tmp_path / "ecg.png"
    assert main([str(file), "--model", str(model_folder), "--plot", str(picture), "--label", "AFIB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "patient.npz"
    (norm,) = [line for line in lines if "NORM" in line]
    (afib,) = [line for line in lines if "AFIB" in line]
    assert norm.endswith("found") and "%" in norm and "found" not in afib
    assert f"  picture: {picture}" in lines
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_long_recording_has_its_timeline(model_folder, tmp_path, capsys):
    np.save(tmp_path / "long.npy", np.random.default_rng(0).normal(size=(2, 7000)).astype(np.float32))
    arguments = ["--sampling-rate", "100", "--leads", "II,I", "--units", "mV"]
    assert main([str(tmp_path / "long.npy"), "--model", str(model_folder), *arguments]) == 0
    assert "0:00      1:10      NORM" in capsys.readouterr().out
    assert main([str(tmp_path / "long.npy"), "--model", str(model_folder), *arguments, "--top-k", "1"]) == 0
    assert "NORM" not in capsys.readouterr().out  # AFIB has the higher score


def test_one_line_and_exit_code_two(model_folder, file, tmp_path, capsys):
    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros((2, 400), np.float32))
    EcgMambaForMaskedModeling(EcgMambaConfig.from_pretrained(model_folder)).save_pretrained(tmp_path / "masked")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    capsys.readouterr()  # what saving said
    model = ["--model", str(model_folder)]
    for arguments, message in (
        ([str(tmp_path / "nowhere.hea"), *model], "no such file"),
        ([str(tmp_path), *model], "is a folder; give one file"),
        ([str(bare), *model], "does not state its sampling rate; give --sampling-rate, in Hz"),
        ([str(file), *model, "--plot", str(tmp_path / "no" / "ecg.png")], "its folder does not exist"),
        ([str(file), *model, "--plot", str(tmp_path / "ecg.doc")], "expected a name ending in .png"),
        ([str(file), *model, "--plot", str(tmp_path / "ecg.png"), "--label", "HYP"], "label is 'HYP'"),
        ([str(file), *model, "--label", "AFIB"], "expected --plot too"),
        ([str(file), *model, "--top-k", "0"], "top_k is 0"),
        ([str(file), "--model", str(tmp_path / "other")], "holds a model of type bert; expected EcgMambaForSequence"),
        ([str(file), "--model", str(tmp_path / "masked")], "holds EcgMambaForMaskedModeling; expected EcgMambaForSeq"),
        ([str(file), "--model", str(tmp_path)], "holds no config.json"),
        ([str(file), "--model", str(tmp_path / "absent")], "absent: no such folder"),
        ([str(file), *model, "--device", "gpu"], "device is 'gpu'"),
    ):
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1 and captured.err.startswith("hf_ecgmamba: "), captured.err
        assert message in captured.err
    assert not (tmp_path / "ecg.png").exists()


def test_a_file_of_many_recordings(model_folder, tmp_path, capsys):
    path, model = tmp_path / "exams.npz", ["--model", str(model_folder)]
    signal = np.random.default_rng(0).normal(size=(4, 2, 400)).astype(np.float32)
    signal[2] = 0
    signal[3] = np.inf
    np.savez(path, x=signal, exam_id=[11, 12, 13, 14], fs=100, leads=["I", "II"])
    assert main([str(path), *model]) == 2  # one fails
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "exams.npz, 4 recordings"
    assert lines[2].startswith("  11  ") and "%" in lines[2]
    assert lines[4] == "  13  no findings: every lead is flat: there is no ECG in it"
    assert lines[5].startswith("  14  failed: ") and "infinite" in lines[5]
    assert main([str(path), *model, "--json"]) == 2
    answers = json.loads(capsys.readouterr().out)["recordings"]
    assert [answer["record"] for answer in answers] == ["11", "12", "13", "14"]
    assert "error" in answers[3]
    assert main([str(path), *model, "--record", "12", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)
    assert chosen["findings"] == answers[1]["findings"]
    assert main([str(path), *model, "--record", "13"]) == 3
    assert main([str(path), *model, "--record", "15"]) == 2
    assert "record is '15'; expected one of its 4: 11, 12, 13, 14" in capsys.readouterr().err
    assert main([str(path), *model, "--plot", str(tmp_path / "ecg.png")]) == 2
    assert "--plot draws one recording of the 4" in capsys.readouterr().err
    assert main([str(path), *model, "--record", "11", "--plot", str(tmp_path / "ecg.png")]) == 0
    assert (tmp_path / "ecg.png").exists()
    np.savez(path, x=signal[:3], exam_id=[11, 12, 13], fs=100, leads=["I", "II"])
    assert main([str(path), *model]) == 3  # in one, nothing is found for a doubt


def test_as_a_process(model_folder, file):
    command = [sys.executable, "-m", "hf_ecgmamba", str(file), "--model", str(model_folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {finding["label"] for finding in json.loads(done.stdout)["findings"]} == {"NORM", "AFIB"}
    assert done.stderr == ""
    command[3] = "nowhere.hea"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("hf_ecgmamba: nowhere.hea")


def test_a_signal_in_doubt_has_exit_code_3(model_folder, tmp_path, capsys):
    flat = tmp_path / "flat.npz"
    np.savez(flat, signal=np.zeros((2, 400)), sampling_rate=100, leads=["I", "II"])
    assert main([str(flat), "--model", str(model_folder)]) == 3
    assert "no findings: every lead is flat" in capsys.readouterr().out
    assert main([str(flat), "--model", str(model_folder), "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"] == [] and printed["refused"].startswith("every lead is flat")
    assert main([str(flat), "--model", str(model_folder), "--on_doubt", "note"]) == 0
    written = capsys.readouterr().out
    assert "in doubt: every lead is flat" in written and "NORM" in written


def test_units_as_a_number(model_folder, tmp_path, capsys):
    counts = np.rint(50 * np.random.default_rng(0).normal(size=(2, 400)).cumsum(axis=1)).astype(int)
    np.savez(tmp_path / "counts.npz", signal=counts, fs=100, leads=["I", "II"])
    assert main([str(tmp_path / "counts.npz"), "--model", str(model_folder)]) == 2
    assert "whole numbers, as a converter counts; give --units" in capsys.readouterr().err
    assert main([str(tmp_path / "counts.npz"), "--model", str(model_folder), "--units", "0.001"]) == 0


def test_many_files_and_patterns_to_a_table(model_folder, tmp_path, capsys):
    for number in range(3):
        signal = np.random.default_rng(number).normal(size=(2, 400)).cumsum(axis=1).astype(np.float32) * 0.05
        np.savez(tmp_path / f"{number}.npz", signal=signal, sampling_rate=100, leads=["I", "II"], units="mV")
    (tmp_path / "broken.npz").write_text("no archive")
    model = ["--model", str(model_folder)]
    table = tmp_path / "scores.csv"
    assert main([str(tmp_path / "[0-2].npz"), *model, "--table", str(table)]) == 0
    capsys.readouterr()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["0.npz", "1.npz", "2.npz"]
    assert main([str(tmp_path / "1.npz"), *model, "--json"]) == 0
    alone = {one["label"]: one["score"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert float(rows[1]["score_AFIB"]) == pytest.approx(alone["AFIB"], abs=1e-6) and rows[1]["findings"] == "NORM"

    files = [str(tmp_path / name) for name in ("0.npz", "broken.npz")]
    assert main([*files, *model, "--json"]) == 2  # the others are answered all the same
    first, second = json.loads(capsys.readouterr().out)
    assert first["file"] == files[0] and first["findings"] and "broken.npz" in second["error"]
    assert main([*files, *model]) == 2
    assert "failed: " in capsys.readouterr().out


def test_a_recording_comes_from_another_command(model_folder, file, monkeypatch, capsys):
    class Stdin:
        buffer = io.BytesIO(file.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["-", "--model", str(model_folder), "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert main([str(file), "--model", str(model_folder), "--json"]) == 0
    assert piped["findings"] == json.loads(capsys.readouterr().out)["findings"] and piped["file"] == "-"
    assert main(["-", "--model", str(model_folder)]) == 2  # nothing more comes
    assert "nothing came on stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plot", "x.gif"], "--plot x.gif: expected a name ending in .png"),
        (["other.npz", "--plot", "x.png"], "--plot draws one recording, but there are 2 files"),
        (["--table", "x.xls"], "--table x.xls: expected a name ending in .csv"),
        (["--table", "nowhere/x.csv"], "its folder does not exist"),
        (["-"], "- is one of several files"),
        (["nothing-*.hea"], "no file fits nothing-*.hea"),
    ],
)
def test_arguments_are_checked_before_any_work(more, message, file, capsys, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert main([str(file), *more, "--model", "nowhere/at-all"]) == 2  # the model is not even looked for
    assert message in capsys.readouterr().err
