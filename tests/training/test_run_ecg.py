"""Training from a recipe: what it leaves behind, and that neither a kill nor a second process changes its result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_ecgmamba import (
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForMaskedModeling,
    EcgMambaForSequenceClassification,
    save_for_hub,
)
from tests.training.machines import launch, outputs_of
from training.checkpoints import last_checkpoint
from training.ecg_trainer import EcgTrainer
from training.run_ecg import DataArguments, EcgTrainingArguments, ModelArguments, build_model, load_teacher, main

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "run_ecg.py"
RECIPE = """
dataset: simulated
num_records: 60
sampling_rate: 50
window_seconds: 2.5
hidden_size: 16
num_hidden_layers: 1
encoder_strides: [4, 4]
encoder_kernel_sizes: [9, 5]
time_shift_seconds: 0.3
lead_dropout: 0.1
amplitude_scaling: 0.2
noise: 0.02
num_train_epochs: 3
per_device_train_batch_size: 8
learning_rate: 3e-3
eval_strategy: steps
save_strategy: steps
eval_steps: 4
save_steps: 4
save_total_limit: 10
logging_steps: 1
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run_ecg")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def arguments(place, name, *flags):
    return [str(place / "recipe.yaml"), "--cache_dir", str(place / "cache"), "--output_dir", str(place / name), *flags]


@pytest.fixture(scope="module")
def uninterrupted(place):
    """The run that the others are compared with: 18 steps."""
    report = main(arguments(place, "uninterrupted"))
    return place / "uninterrupted", report


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def losses(folder):
    """Training loss by step."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    history = json.loads(states[-1].read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_a_run_leaves_a_model_and_a_report(uninterrupted):
    folder, report = uninterrupted
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert len(config.thresholds) == config.num_labels == 6
    assert list(config.id2label.values()) == ["AFIB", "CLBBB", "NORM", "SBRAD", "STACH", "STE_"]
    model = EcgMambaForSequenceClassification.from_pretrained(folder)
    reader = EcgMambaFeatureExtractor.from_pretrained(folder)
    assert reader.sampling_rate == model.config.sampling_rate == 50
    assert (folder / "training_curve.png").stat().st_size > 10_000
    written = json.loads((folder / "metrics.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert set(written) == {"validation", "test"} and written["validation"]["records"] == 6
    assert written["validation"]["thresholds"]["AFIB"] == config.thresholds[0]


def test_the_best_checkpoint_is_kept(uninterrupted):
    folder, report = uninterrupted
    state = json.loads((folder / "checkpoint-18" / "trainer_state.json").read_text())
    measured = {e["step"]: e["eval_macro_auc"] for e in state["log_history"] if "eval_macro_auc" in e}
    assert report["validation"]["macro_auc"] == pytest.approx(max(measured.values()))
    best = folder / f"checkpoint-{state['best_global_step']}" / "model.safetensors"
    assert equal_weights(folder / "model.safetensors", best)


def equal_weights(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_killed_and_resumed_equals_uninterrupted(place, uninterrupted):
    """kill -9 in the second epoch, in mid-epoch; dropout, order and augmentation must go on where they were."""
    process = start([sys.executable, str(SCRIPT), *arguments(place, "killed")])
    state = place / "killed" / "checkpoint-8" / "trainer_state.json"
    while not state.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert not (place / "killed" / "model.safetensors").exists()

    # as run_msa takes it; without the value, see the next test
    main(arguments(place, "killed", "--resume_from_checkpoint", "true"))
    folder, _ = uninterrupted
    for weights in ("checkpoint-18/model.safetensors", "model.safetensors"):
        assert equal_weights(place / "killed" / weights, folder / weights)
    assert losses(place / "killed") == losses(folder)


def test_a_run_does_not_go_on_with_other_arguments(place, uninterrupted):
    changes = ("--learning_rate", "1e-3", "--lead_dropout", "0.2", "--hidden_size", "8", "--logging_steps", "5")
    with pytest.raises(ValueError) as error:
        main(arguments(place, "uninterrupted", "--resume_from_checkpoint", *changes))
    for change in ("learning_rate is 0.001, expected 0.003", "lead_dropout is 0.2", "hidden_size is 8, expected 16"):
        assert change in str(error.value)
    assert "logging_steps" not in str(error.value)
    with pytest.raises(ValueError, match="holds an earlier run"):
        main(arguments(place, "uninterrupted"))


@pytest.fixture(scope="module")
def averaged(place):
    """A run whose weights are averaged, with a checkpoint after each of its 6 steps; crops grow in mid-run."""
    flags = ("--num_train_epochs", "1", "--eval_steps", "1", "--save_steps", "1", "--average_decay", "0.4")
    report = main(arguments(place, "averaged", *flags, "--bf16", "True", "--save_total_limit", "99"))
    return place / "averaged", flags, report


def test_the_average_of_the_weights_is_evaluated_and_kept(averaged):
    folder, _, report = averaged
    average = None
    for step in range(1, 7):
        weights = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        written = load_file(folder / f"checkpoint-{step}" / "average.safetensors")
        if average is not None:
            decay = min(0.4, (1 + step) / (10 + step))
            average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
            assert all(torch.allclose(average[name], written[name], atol=1e-6) for name in average)
        average = written
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    best = folder / f"checkpoint-{state['best_global_step']}"
    assert equal_weights(folder / "model.safetensors", best / "average.safetensors")
    assert not equal_weights(best / "model.safetensors", best / "average.safetensors")
    assert report["validation"]["macro_auc"] == pytest.approx(state["best_metric"], abs=1e-6)


def test_a_resumed_run_goes_on_with_its_average(place, averaged):
    folder, flags, _ = averaged
    copy = place / "averaged_again"
    shutil.copytree(folder, copy)
    for left in (*copy.glob("checkpoint-[456]"), copy / "metrics.json", copy / "model.safetensors"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    last = ("--bf16", "True", "--save_total_limit", "99", "--resume_from_checkpoint")
    main(arguments(place, "averaged_again", *flags, *last))
    for weights in ("checkpoint-6/average.safetensors", "checkpoint-6/model.safetensors", "model.safetensors"):
        assert equal_weights(copy / weights, folder / weights)


def test_teachers_are_a_share_of_the_loss(pretrained, tmp_path):
    torch.manual_seed(0)
    folders = [tmp_path / "one", tmp_path / "two"]
    config = EcgMambaConfig(
        hidden_size=8, num_hidden_layers=1, num_labels=3, hidden_dropout=0.0, problem_type="multi_label_classification"
    )
    teachers = [EcgMambaForSequenceClassification(config) for _ in folders]
    for teacher, folder in zip(teachers, folders, strict=True):
        teacher.save_pretrained(folder)
    student = EcgMambaForSequenceClassification(config)
    training = EcgTrainingArguments(
        str(tmp_path / "run"), distillation_weight=0.3, eval_strategy="no", load_best_model_at_end=False
    )
    trainer = EcgTrainer(model=student, args=training, teachers=[load_teacher(folder, config) for folder in folders])
    batch = {"input_values": torch.randn(4, 12, 200), "labels": torch.randint(2, (4, 3)).float()}
    with torch.no_grad():
        logits, (one, two) = student(batch["input_values"]).logits, [t(batch["input_values"]).logits for t in teachers]
        taught = (one.sigmoid() + two.sigmoid()) / 2
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        expected = 0.7 * cross_entropy(logits, batch["labels"]) + 0.3 * cross_entropy(logits, taught)
    loss = trainer.compute_loss(student.train(), batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert trainer.compute_loss(student.eval(), batch).item() == pytest.approx(
        cross_entropy(logits, batch["labels"]).item(), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"teachers: id2label of .* expected"):
        load_teacher(folders[0], EcgMambaConfig(num_labels=4))


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_equal_one_with_twice_the_batch(place, machines):
    """Without dropout, whose masks are drawn by each process."""
    flags = ("--hidden_dropout", "0", "--num_train_epochs", "2")
    one_name, two_name = f"one_{machines}", f"two_{machines}"
    outputs_of(launch(machines, SCRIPT, *arguments(place, two_name, *flags, "--per_device_train_batch_size", "4")))
    report = main(arguments(place, one_name, *flags))
    one, two = losses(place / one_name), losses(place / two_name)
    assert len(one) == 12 and one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    metrics = json.loads((place / two_name / "metrics.json").read_text())
    assert metrics["validation"]["macro_auc"] == pytest.approx(report["validation"]["macro_auc"], abs=1e-4)


def test_last_checkpoint_passes_over_a_half_written_one(tmp_path):
    assert last_checkpoint(tmp_path, world_size=1) is None
    for step, state in ((4, "{}"), (12, "{}"), (20, '{"epoch": 1.'), (24, None), (28, "{}")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
        if step != 28:
            (folder / "rng_state.pth").touch()
    assert last_checkpoint(tmp_path, world_size=1) == str(tmp_path / "checkpoint-12")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "mimic"], "dataset is 'mimic'"),
        (["--dataset", "ptbxl"], "data_dir is missing"),
        (["--crop_pooling", "sum"], "crop_pooling is 'sum'"),
        (["--crop_seconds", "0"], r"crop_seconds is 0\.0; expected at least 0\.5 s"),
        (["--crop_seconds", "inf"], "crop_seconds is inf"),
        (["--preprocessing_workers", "0"], "preprocessing_workers is 0"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor is 0.1; expected 0"),
        (["--crop_seconds", "2.5", "0"], r"crop_seconds is 0\.0"),
        (["--push_to_hub", "true"], "push_to_hub is True; expected False"),
        (
            ["--train_sampling_strategy", "group_by_length"],
            "train_sampling_strategy is 'group_by_length'",
        ),
        (["--lead_dropout", "1"], "lead_dropout is 1"),
        (["--average_decay", "1"], "average_decay is 1"),
        (["--distillation_weight", "1.5"], "distillation_weight is 1.5"),
        (["--hidden_size", "0"], "hidden_size is 0"),
    ],
)
def test_bad_arguments_are_named(place, flags, message):
    with pytest.raises(ValueError, match=message):
        main(arguments(place, "bad", *flags))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An ECGMamba of three labels, and the same network pre-trained without any."""
    config = EcgMambaConfig(hidden_size=16, num_hidden_layers=1, num_labels=3)
    folder, reader = tmp_path_factory.mktemp("pretrained"), EcgMambaFeatureExtractor.from_model_config(config)
    save_for_hub(EcgMambaForSequenceClassification(config), reader, folder / "labels")
    save_for_hub(EcgMambaForMaskedModeling(config), reader, folder / "masked")
    return folder


@pytest.mark.parametrize("first", ["labels", "masked"])
def test_fine_tuning_keeps_the_network_and_takes_a_new_head(pretrained, tmp_path, first):
    given = {"model_name_or_path": str(pretrained / first), "optional_leads": ["V6"]}
    tuned, reader = build_model(ModelArguments(**given), ("AF", "NORM"))
    before, after = load_file(pretrained / first / "model.safetensors"), tuned.state_dict()
    kept = [name for name in before if name.startswith("ecgmamba.")]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert tuned.classifier.weight.shape == (2, 16) and reader.optional_leads == ("V6",)
    save_for_hub(tuned, reader, tmp_path)
    again = EcgMambaForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.optional_leads == ("V6",) and again.config.id2label == {0: "AF", 1: "NORM"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pooling": "foo"}, "pooling is 'foo'"),
        ({"leads": ["I", "II"]}, r"whose weights do not fit this network \(ecgmamba.encoder.convolutions.0.weight\)"),
        ({"num_hidden_layers": 2}, r"do not fit this network \(ecgmamba.blocks.1.* and \d+ more\)"),
        ({"hidden_size": 32}, "do not fit this network"),
        ({"pooling": "attention"}, "do not fit this network"),
    ],
)
def test_fine_tuning_another_network_is_refused(pretrained, given, message):
    with pytest.raises(ValueError, match=message):
        build_model(ModelArguments(model_name_or_path=str(pretrained / "labels"), **given), ("AF", "NORM"))


def test_rows_of_the_classifier_follow_their_labels(tmp_path):
    before = ("NORM", "AFIB", "LBBB")
    labels = {"id2label": dict(enumerate(before)), "label2id": {name: k for k, name in enumerate(before)}}
    config = EcgMambaConfig(hidden_size=16, num_hidden_layers=1, problem_type="multi_label_classification", **labels)
    model = EcgMambaForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.bias)
    save_for_hub(model, EcgMambaFeatureExtractor.from_model_config(config), tmp_path)
    for after in (("AFIB", "LBBB", "NORM"), ("LBBB", "MI", "NORM"), ("AFIB",), ("A", "B", "C")):
        tuned, _ = build_model(ModelArguments(model_name_or_path=str(tmp_path)), after)
        assert tuned.classifier.weight.shape == (len(after), 16) and tuned.config.num_labels == len(after)
        for row, name in enumerate(after):
            same = [
                torch.equal(tuned.classifier.weight[row], model.classifier.weight[k])
                and torch.equal(tuned.classifier.bias[row], model.classifier.bias[k])
                for k in range(3)
            ]
            assert same == [name == other for other in before], (after, name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "folder", "label_set": "superdiagnostic"}, "label_set is 'superdiagnostic', which is for ptbxl"),
        ({"dataset": "folder", "source_sampling_rate": 500}, "source_sampling_rate is 500, which is for ptbxl"),
        ({"dataset": "cpsc2018", "labels_table": "a.csv"}, "labels_table is 'a.csv', which is for folder"),
        ({"dataset": "ptbxl", "num_records": 5}, "num_records is 5, which is for simulated"),
        ({"dataset": "simulated"}, "data_dir is 'here'; expected none for simulated"),
    ],
)
def test_arguments_of_other_data_sets_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(data_dir="here", **given)
