"""What both training scripts take of Trainer's arguments, and what of them makes another run."""

import pytest
import torch
from datasets import Dataset

from hf_ecgmamba import EcgMambaConfig
from training.checkpoints import describe_run, find_checkpoint, record_run
from training.run_ecg import EcgTrainingArguments
from training.run_msa import MsaTrainingArguments
from training.trainer import FIXED, EpochTrainer

BOTH = pytest.mark.parametrize("kind", [EcgTrainingArguments, MsaTrainingArguments])
OTHERS = {bool: lambda value: not value, float: lambda value: value + 0.1, str: lambda value: "group_by_length"}


@BOTH
@pytest.mark.parametrize("name", FIXED)
def test_what_would_be_ignored_or_fail_late_is_refused_at_once(tmp_path, kind, name):
    value, reason = FIXED[name]
    with pytest.raises(ValueError, match=f"{name} is .*; expected {value!r}: ") as error:
        kind(output_dir=str(tmp_path), **{name: OTHERS[type(value)](value)})
    assert reason in str(error.value)


def test_no_sampling_strategy_but_random_is_taken(tmp_path):
    for strategy in ("sequential", "batch_rebalance"):
        with pytest.raises(ValueError, match=f"train_sampling_strategy is '{strategy}'"):
            EcgTrainingArguments(output_dir=str(tmp_path), train_sampling_strategy=strategy)


@BOTH
def test_a_precision_that_accelerate_was_launched_with_belongs_to_the_run(tmp_path, monkeypatch, kind):
    def describe():
        splits = {"train": Dataset.from_dict({"label": [1.0]})}
        return describe_run([kind(output_dir=str(tmp_path))], EcgMambaConfig(), splits, num_processes=1)

    plain = describe()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    record_run(tmp_path, describe())
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-1" / "rng_state.pth").touch()
    assert find_checkpoint(tmp_path, describe(), resume=True)
    with pytest.raises(ValueError, match="mixed_precision is None, expected 'bf16'"):
        find_checkpoint(tmp_path, plain, resume=True)


@BOTH
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_half_precision_without_gpu_is_refused_however_it_was_asked_for(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 is True, but there is no GPU"):
        kind(output_dir=str(tmp_path))


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, None), ("last", True), ("true", True), ("True", True), (True, True), ("yes", True),
        ("false", False), (False, False), ("runs/checkpoint-3", "runs/checkpoint-3"),
    ],
)  # fmt: skip
def test_resuming_is_said_by_a_word_or_a_checkpoint(tmp_path, given, expected):
    resume = EcgTrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint=given).resume_from_checkpoint
    assert resume == (False if expected is None else expected)


def test_processes_search_for_no_unused_parameters(tmp_path):
    arguments = EcgTrainingArguments(output_dir=str(tmp_path), eval_strategy="no", load_best_model_at_end=False)
    trainer = EpochTrainer(model=torch.nn.Linear(1, 1), args=arguments)
    assert trainer.accelerator.ddp_handler.find_unused_parameters is False
