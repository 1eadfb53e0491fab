"""Going on with a run: only with what it was made with, and saying so otherwise."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from hf_mse_adapter import MseConfig
from training.checkpoints import FINISHED, MADE_WITH, describe_run, find_checkpoint, record_run
from training.run_msa import ARGUMENTS


def describe(num_processes=1, values=(1.0, 2.0), **changes):
    arguments = []
    for kind in ARGUMENTS:
        arguments.append(kind(**{name: value for name, value in changes.items() if name in kind.__dataclass_fields__}))
    config = MseConfig(audio_dim=3, vision_dim=2, dropout=changes.get("dropout", 0.1))
    splits = {"train": Dataset.from_dict({"label": np.asarray(values)}).with_format("numpy")}
    return describe_run(arguments, config, splits, num_processes)


def write_checkpoint(folder, step=4, processes=1, **state):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    for rank in range(processes):
        (checkpoint / ("rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth")).touch()
    return str(checkpoint)


@pytest.fixture
def folder(tmp_path):
    record_run(tmp_path / "run", describe())
    write_checkpoint(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output_dir": "elsewhere", "logging_steps": 7, "report_to": "tensorboard", "run_name": "again"},
        {"dataloader_num_workers": 2, "save_total_limit": 3, "seeds": [7], "disable_tqdm": True},
        {"dataset": "simulated", "data_path": "moved.pkl", "dropout": 0.1, "trust_remote_code": True},
    ],
)
def test_what_changes_no_result_may_change(folder, changes):
    assert find_checkpoint(folder, describe(**changes), resume=True) == str(folder / "checkpoint-4")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"learning_rate": 0.1}, "learning_rate is 0.1, expected 5e-05"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size is 4, expected 8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, expected 1"),
        ({"num_train_epochs": 3}, "num_train_epochs is 3, expected 30.0"),
        ({"early_stopping_patience": None}, "early_stopping_patience is None, expected 8"),
        ({"max_text_tokens": 50}, "max_text_tokens is 50, expected None"),
        ({"withhold": ["text"]}, r"withhold is \['text'\], expected \[\]"),
        ({"dropout": 0.2}, "dropout is 0.2, expected 0.1"),
        ({"backbone": "other"}, "backbone is 'other', expected 'tiny'"),
        ({"num_processes": 2}, "num_processes is 2, expected 1"),
        ({"values": (1.0, 2.5)}, "train data is '2 samples, .*', expected '2 samples, "),
        ({"values": (1.0,)}, "train data is '1 samples, .*', expected '2 samples, "),
    ],
)
def test_what_changes_the_result_is_refused_by_name(folder, changes, expected):
    with pytest.raises(ValueError, match=expected):
        find_checkpoint(folder, describe(**changes), resume=True)
    with pytest.raises(ValueError, match=expected):
        find_checkpoint(folder.parent / "new", describe(**changes), resume=folder / "checkpoint-4")


def test_all_changes_are_named_at_once_and_nothing_else(folder):
    with pytest.raises(ValueError) as error:
        find_checkpoint(folder, describe(learning_rate=0.1, noise=0.5, logging_steps=3), resume=True)
    assert str(error.value).count("expected") == 2 and "noise is 0.5, expected 0.0" in str(error.value)


def test_a_new_run_is_not_mixed_with_an_earlier_one(folder, tmp_path):
    assert find_checkpoint(tmp_path / "new", describe(), resume=False) is None
    for earlier in (folder, tmp_path / "finished"):
        if earlier != folder:
            earlier.mkdir()
            (earlier / FINISHED).write_text("{}")
        with pytest.raises(ValueError, match="holds an earlier run"):
            find_checkpoint(earlier, describe(), resume=False)
    with pytest.raises(ValueError, match="holds an earlier run"):
        find_checkpoint(tmp_path / "finished", describe(), resume=str(folder / "checkpoint-4"))


def test_what_there_is_to_go_on_from_is_said(folder, tmp_path, capsys):
    assert find_checkpoint(tmp_path / "new", describe(), resume=True) is None
    assert "new holds no checkpoint: starting anew" in capsys.readouterr().out
    (folder / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1.')
    assert find_checkpoint(folder, describe(), resume=True) is None
    assert "no checkpoint that was written whole: starting anew" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was not written whole"):
        find_checkpoint(folder, describe(), resume=folder / "checkpoint-4")
    with pytest.raises(OSError, match="resume_from_checkpoint is 'nowhere'"):
        find_checkpoint(folder, describe(), resume="nowhere")
    (folder / MADE_WITH).unlink()
    with pytest.raises(ValueError, match=r"has no made_with\.json"):
        find_checkpoint(folder, describe(), resume=True)


def test_a_moved_run_finds_its_best_checkpoint(folder, tmp_path):
    best = write_checkpoint(folder, 2)
    write_checkpoint(folder, 6, best_model_checkpoint=best, global_step=6)
    shutil.move(folder, tmp_path / "moved")
    checkpoint = tmp_path / "moved" / "checkpoint-6"
    assert find_checkpoint(tmp_path / "moved", describe(), resume=True) == str(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state == {"best_model_checkpoint": str(tmp_path / "moved" / "checkpoint-2"), "global_step": 6}
