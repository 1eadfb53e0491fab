"""Training from a recipe: what it leaves behind, and that neither a kill nor a second process changes its result."""

import csv
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_mse_adapter import MseConfig, MseForConditionalGeneration, MseProcessor
from training.data.simulated_msa import load_simulated_msa
from training.data.tiny_language_model import build_tiny_language_model
from training.recipe import parse_recipe
from training.run_msa import ARGUMENTS, main, with_end_token

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "run_msa.py"
RECIPES = SCRIPT.parent / "recipes"
RECIPE = """
dataset: simulated
num_samples: 93
label_step: 0.5
backbone: tiny
tiny_hidden_size: 32
tiny_num_hidden_layers: 1
prompt_template: "{pseudo_tokens}{text}:"
head: alone
audio_hidden_size: 8
vision_hidden_size: 8
time_crop: 4
time_masks: 1
time_mask_steps: 4
noise: 0.1
feature_dropout: 0.1
seeds: [1, 2]
num_train_epochs: 2
per_device_train_batch_size: 8
learning_rate: 3.0e-3
eval_strategy: steps
save_strategy: steps
logging_strategy: steps
eval_steps: 3
save_steps: 3
logging_steps: 1
save_total_limit: 10
disable_tqdm: true
"""
STEPS_PER_EPOCH = 7  # 63 samples: the last seven fill no step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run_msa")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def arguments(place, name, *flags):
    return [str(place / "recipe.yaml"), "--output_dir", str(place / name), *flags]


@pytest.fixture(scope="module")
def uninterrupted(place):
    main(arguments(place, "uninterrupted"))
    return place / "uninterrupted"


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def losses(folder):
    history = json.loads((folder / "history.json").read_text())
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def assert_equal_weights(folder, other, atol=0.0):
    one, two = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol)


def test_a_run_leaves_models_predictions_and_a_report(uninterrupted):
    for seed in (1, 2):
        folder = uninterrupted / f"seed_{seed}"
        model = MseForConditionalGeneration.from_pretrained(folder)
        processor = MseProcessor.from_pretrained(folder)
        assert processor.num_context_utterances == 0  # none was seen in training
        test = load_simulated_msa(93)["test"]
        with (folder / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == list(test["id"])
        assert [float(row["label"]) for row in rows] == list(test["label"])
        sample = {name: test[3][name] for name in ("audio", "vision")} | {"text": str(test[3]["text"])}
        (prediction,) = model.predict(processor.collate([sample]), processor.answers)
        assert prediction.value == pytest.approx(float(rows[3]["prediction"]), abs=1e-4)
        error = statistics.mean(abs(float(row["label"]) - float(row["prediction"])) for row in rows)
        measured = json.loads((folder / "metrics.json").read_text())
        assert measured["test"]["mae"] == pytest.approx(error, abs=1e-5)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"# {uninterrupted.name}, seed_{seed}\n" in card and "On 63 samples (data set: simulated)" in card
        assert "context" not in card
        for split in ("valid", "test"):
            (row,) = [line for line in card.splitlines() if line.startswith(f"| {split} ")]
            assert f" {measured[split]['mae']:.4g} " in row
    assert (uninterrupted / "training_curves.png").stat().st_size > 10_000


def test_the_table_has_mean_and_deviation_over_the_seeds(uninterrupted):
    results = json.loads((uninterrupted / "results.json").read_text())
    errors = [results[seed]["test"]["mae"] for seed in ("1", "2")]
    assert errors[0] != errors[1]
    table = (uninterrupted / "results.md").read_text().split("test\n")[1]
    cells = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in table.splitlines()[1:]
    }
    column = cells["seed"].index("mae")
    assert float(cells["mean"][column]) == pytest.approx(statistics.mean(errors), rel=1e-3)
    assert float(cells["deviation"][column]) == pytest.approx(statistics.stdev(errors), rel=1e-3)


def test_the_best_checkpoint_by_validation_is_kept(uninterrupted):
    folder = uninterrupted / "seed_1"
    history = json.loads((folder / "history.json").read_text())
    measured = {entry["step"]: entry["eval_mae"] for entry in history if "eval_mae" in entry}
    best = min(measured, key=measured.get)
    assert json.loads((folder / "metrics.json").read_text())["valid"]["mae"] == pytest.approx(measured[best])
    assert_equal_weights(folder, folder / f"checkpoint-{best}")


def test_killed_and_resumed_equals_uninterrupted(place, uninterrupted):
    """kill -9 in the second seed, in mid-epoch; dropout, order and augmentation must go on where they were."""
    process = start([sys.executable, str(SCRIPT), *arguments(place, "killed")])
    state = place / "killed" / "seed_2" / "checkpoint-9" / "trainer_state.json"
    while not state.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert not (place / "killed" / "seed_2" / "metrics.json").exists()
    first = (place / "killed" / "seed_1" / "model.safetensors").stat().st_mtime_ns

    # from elsewhere, by other readers: neither may matter
    (place / "killed").rename(place / "moved")
    main(arguments(place, "moved", "--resume_from_checkpoint", "--dataloader_num_workers", "1"))
    (place / "moved").rename(place / "killed")
    assert (place / "killed" / "seed_1" / "model.safetensors").stat().st_mtime_ns == first
    for folder in ("seed_1", "seed_2", "seed_2/checkpoint-14"):
        assert_equal_weights(place / "killed" / folder, uninterrupted / folder)
    assert losses(place / "killed" / "seed_2") == losses(uninterrupted / "seed_2")
    assert json.loads((place / "killed" / "results.json").read_text()) == json.loads(
        (uninterrupted / "results.json").read_text()
    )


def test_an_earlier_run_is_not_mixed_with_a_new_one(place, uninterrupted):
    with pytest.raises(ValueError, match="holds an earlier run"):
        main(arguments(place, "uninterrupted"))


def test_a_run_does_not_go_on_with_other_arguments_or_data(place, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    changes = ("--learning_rate", "1e-3", "--noise", "0.2", "--dropout", "0.3", "--num_samples", "99")
    with pytest.raises(ValueError) as error:
        main(arguments(place, "uninterrupted", "--resume_from_checkpoint", *changes))
    for change in (
        "learning_rate is 0.001, expected 0.003",
        "noise is 0.2, expected 0.1",
        "dropout is 0.3, expected 0.1",
        "train data is '67 samples, ",
    ):
        assert change in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}


# labels of unlike token counts: "-0.25" and "0.50"; classes "9", "10" and "11"
CLASSES = ("--labels", *(f"unused {index}" for index in range(9)), "negative", "neutral", "positive")
TASKS = {"regression": ("--label_step", "0.25"), "classification": ("--task", "classification", *CLASSES)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "head, task",
    [("none", "regression"), ("alone", "regression"), ("beside", "regression"), ("beside", "classification")],
)
def test_two_processes_equal_one_with_twice_the_batch(place, head, task):
    """Without dropout, whose masks are drawn by each process."""
    name = f"{head}_{task}"
    flags = ("--dropout", "0", "--head", head, "--seeds", "1", *TASKS[task])
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--cpu"]
    two_flags = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    process = start([*launch, str(SCRIPT), *arguments(place, f"two_{name}", *flags, *two_flags)])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    main(arguments(place, f"one_{name}", *flags))
    one, two = losses(place / f"one_{name}" / "seed_1"), losses(place / f"two_{name}" / "seed_1")
    assert len(one) == 2 * STEPS_PER_EPOCH and one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    assert_equal_weights(place / f"one_{name}" / "seed_1", place / f"two_{name}" / "seed_1", atol=1e-4)
    paths = [place / f"{number}_{name}" / "results.json" for number in ("one", "two")]
    results = [json.loads(path.read_text())["1"]["test"] for path in paths]
    metric = "mae" if task == "regression" else "weighted_f1"
    assert results[0][metric] == pytest.approx(results[1][metric], abs=1e-4)


QUICK = (
    "--backbone",
    "tiny",
    "--tiny_hidden_size",
    "32",
    "--num_train_epochs",
    "1",
    "--seeds",
    "1",
    "--disable_tqdm",
    "true",
)


def test_legacy_pickles_train_end_to_end(shared_data, tmp_path):
    results = main([
        "--dataset", "mse_adapter", "--data_path", str(shared_data / "msa" / "legacy" / "ravdess_{split}.pkl"),
        "--task", "classification", "--output_dir", str(tmp_path / "run"), *QUICK,
    ])  # fmt: skip
    assert 0 <= results[1]["test"]["weighted_f1"] <= 1
    with (tmp_path / "run" / "seed_1" / "predictions_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert sum(float(value) for name, value in rows[0].items() if "probability" in name) == pytest.approx(1, abs=1e-4)


def test_mmsa_pickle_trains_end_to_end(shared_data, tmp_path):
    results = main([
        "--dataset", "mmsa", "--data_path", str(shared_data / "msa" / "legacy" / "mmsa_layout_mosi_small.pkl"),
        "--label_step", "0.2", "--output_dir", str(tmp_path / "run"), *QUICK,
    ])  # fmt: skip
    assert 0 < results[1]["test"]["mae"] < 6 and results[1]["test"]["unparsable"] == 0


def test_feature_dictionary_trains_end_to_end(shared_data, tmp_path):
    results = main([
        "--dataset", "ravdess_features", "--task", "classification", "--head", "alone",
        "--data_path", str(shared_data / "msa" / "legacy" / "original_ravdess_au_mfcc.pkl"),
        "--per_device_train_batch_size", "16", "--learning_rate", "2e-3",
        "--prompt_template", "{pseudo_tokens}{text}:",
        "--output_dir", str(tmp_path / "run"), *QUICK, "--num_train_epochs", "2",
    ])  # fmt: skip
    assert results[1]["test"]["accuracy"] > 0.2  # chance is 0.125


def test_an_llm_from_a_folder_is_named_by_it_and_not_copied(tmp_path):
    llm, tokenizer = build_tiny_language_model(["a few words"], hidden_size=32, num_hidden_layers=1)
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    main([
        "--num_samples", "48", "--backbone", str(tmp_path / "llm"), "--label_step", "0.5", "--num_train_epochs", "1",
        "--seeds", "1", "--answer_method", "greedy", "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true",
    ])  # fmt: skip
    folder = tmp_path / "run" / "seed_1"
    assert MseConfig.from_pretrained(folder).backbone_name_or_path == str(tmp_path / "llm")
    assert (folder / "model.safetensors").stat().st_size < (tmp_path / "llm" / "model.safetensors").stat().st_size * 20
    assert not any(name.startswith("language_model") for name in load_file(folder / "model.safetensors"))
    # an untrained LLM's own words are rarely numbers: they are counted, and never read as 0.0
    with (folder / "predictions_test.csv").open(newline="") as file:
        unread = [row for row in csv.DictReader(file) if row["prediction"] == ""]
    assert json.loads((folder / "metrics.json").read_text())["test"]["unparsable"] == len(unread) > 0


@pytest.mark.parametrize("withheld", ["text", "audio", "vision"])
def test_a_modality_can_be_withheld(tmp_path, withheld):
    results = main([
        "--num_samples", "48", "--label_step", "0.5", "--withhold", withheld, "--output_dir", str(tmp_path / "run"),
        *QUICK,
    ])  # fmt: skip
    assert results[1]["valid"]["unparsable"] == 0


def test_a_published_folder_keeps_the_limits_it_was_trained_with(tmp_path):
    limits = {"max_text_tokens": 5, "max_audio_length": 21, "max_vision_length": 11, "num_context_utterances": 2}
    flags = [word for name, value in limits.items() for word in (f"--{name}", str(value))]
    main(["--num_samples", "48", "--label_step", "0.5", *flags, "--output_dir", str(tmp_path / "run"), *QUICK])
    processor = MseProcessor.from_pretrained(tmp_path / "run" / "seed_1")
    assert {name: getattr(processor, name) for name in limits} == limits
    assert "(the last 2 are read)" in (tmp_path / "run" / "seed_1" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("msa_*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one(recipe):
    flags = ["--data_path", "anywhere", "--bf16", "false"]
    data, augmentation, network, training = parse_recipe(ARGUMENTS, [str(recipe), *flags])
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert data.language == values.get("language", "en") and network.backbone == values["backbone"]
    assert augmentation.noise == values.get("noise", 0.0)
    # PyYAML reads 5e-5 as a string: whatever the recipe writes must arrive as a number
    assert isinstance(training.learning_rate, float) and training.learning_rate == float(values["learning_rate"])


def test_recipes_have_the_papers_values():
    names = {path.stem for path in RECIPES.glob("msa_*.yaml")}
    for dataset, learning_rate, batch, sizes, lengths in (
        ("mosei", 5e-5, 8, (64, 32), (50, 500, 375)),
        ("simsv2", 5e-5, 8, (64, 64), (50, 925, 232)),
        ("meld", 5e-4, 6, (64, 32), (65, 157, 32)),
        ("cherma", 5e-5, 6, (32, 16), (78, 543, 16)),
    ):
        for backbone in ("chatglm3", "llama2", "qwen"):
            assert f"msa_{dataset}_{backbone}" in names
            values = yaml.safe_load((RECIPES / f"msa_{dataset}_{backbone}.yaml").read_text(encoding="utf-8"))
            assert values["learning_rate"] == learning_rate and values["per_device_train_batch_size"] == batch
            assert (values["audio_hidden_size"], values["vision_hidden_size"]) == sizes
            limits = ("max_text_tokens", "max_audio_length", "max_vision_length")
            assert tuple(values[limit] for limit in limits) == lengths
            assert len(values["seeds"]) == 5 and values["warmup_steps"] == 0.1


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--dataset", "mosei"), "dataset is 'mosei'"),
        (("--dataset", "mmsa"), "data_path is missing"),
        (("--dataset", "mse_adapter", "--data_path", "train.pkl"), "{split}"),
        (("--withhold", "smell"), "text, audio and vision, not smell"),
        (("--swap_vision", "0.5"), "swap_vision is 0.5"),
        (("--noise", "-1"), "noise is -1"),
        (("--feature_dropout", "1"), r"feature_dropout is 1.0; expected a number in \[0, 1.0\)"),
        (("--seed", "7"), "seed is 7; expected seeds"),
        (("--learning_rat", "1"), "--learning_rat 1; no such arguments"),
        (("--quantization", "4bit"), "quantization is '4bit'; expected none for the backbone 'tiny'"),
        (("--dtype", "float8"), "dtype is 'float8'"),
        (("--dataset", "mmsa", "--data_path", "x", "--task", "classification"), "expected regression, as mmsa has"),
        (("--labels", "a", "b"), "expected none in a regression"),
        (("--label_range", "-1", "1"), r"label_range is \[-1.0, 1.0\], but \d+ labels of the train split are outside"),
        (("--early_stopping_patience", "-1"), "early_stopping_patience is -1"),
        pytest.param(
            ("--fp16", "true"),
            "there is no GPU",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator"),
        ),
        (("--label_smoothing_factor", "0.1"), "label_smoothing_factor is 0.1; expected 0"),
        (("--push_to_hub", "true"), "push_to_hub is True; expected False"),
        (("--dataloader_drop_last", "true"), "dataloader_drop_last is True"),
        (("--head_label_smoothing", "0.1"), "a classifying head that is alone"),
        (("--memory_steps", "2"), "memory_steps is 2"),
        (("--answer_method", "head"), "answer_method is 'head'"),
        (("--answer_method", "guess", "--head", "alone"), "answer_method is 'guess'"),
        (("--task", "classification", "--answer_method", "expected"), "answer_method is 'expected'"),
        (("--num_context_utterances", "-1"), "num_context_utterances is -1"),
        (("--max_text_tokens", "0"), "max_text_tokens must be a whole number of at least 1"),
        (("--task", "classification", "--swap_vision", "1.5"), "swap_vision is 1.5"),
        (("--num_samples", "6"), "do not fill one step"),
        (("--task", "classification", "--labels", "negative", "positive"), "'neutral'"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        main([*flags, "--output_dir", str(tmp_path / "run"), *QUICK])


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seeds: [1")
    with pytest.raises(ValueError, match=r"recipe\.yaml is no yaml"):
        main([str(tmp_path / "recipe.yaml")])
    with pytest.raises(OSError, match="backbone is '/no/where'; expected tiny, or a folder or Hub id"):
        main(["--num_samples", "48", *QUICK, "--backbone", "/no/where"])


def test_splits_of_unlike_width_are_refused_and_what_was_found_is_told(tmp_path, capsys):
    def write(split, dim, labels):
        entries = [
            {
                "features": {"text": "a", "audio": np.ones((2 + i, dim)), "video": None if i else [[1.0]]},
                "label": label,
            }
            for i, label in enumerate(labels)
        ]
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps(entries))

    flags = ("--dataset", "mse_adapter", "--data_path", str(tmp_path / "{split}.pkl"), "--per_device_train_batch_size",
             "2", "--output_dir", str(tmp_path / "run"), *QUICK)  # fmt: skip
    write("train", 3, [0.5, 1.0])
    write("valid", 2, [1.0])
    with pytest.raises(ValueError, match=r"audio has \{'train': 3, 'valid': 2\} features"):
        main([*flags])
    write("valid", 3, [1.0])
    main([*flags])
    printed = capsys.readouterr().out
    assert "train: 2 samples, audio [2 to 3, 3], vision [1, 1] (missing in 1)\n" in printed
    assert "valid: 1 samples, audio [2, 3], vision [1, 1]\n" in printed


def test_an_end_token_is_found_in_the_llms_configs():
    backbone, tokenizer = build_tiny_language_model(["a text"], 16, 1)
    end = tokenizer.eos_token_id
    tokenizer.eos_token = None
    backbone.generation_config.eos_token_id, backbone.config.eos_token_id = None, [end]
    assert with_end_token(tokenizer, backbone).eos_token_id == end
    tokenizer.eos_token = backbone.config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id is None"):
        with_end_token(tokenizer, backbone)


def test_early_stopping_stays_stopped_after_a_kill(place):
    flags = ("--seeds", "1", "--early_stopping_patience", "1", "--num_train_epochs", "8", "--learning_rate", "0.3")
    main(arguments(place, "stopped", *flags))
    folder = place / "stopped" / "seed_1"
    before = load_file(folder / "model.safetensors")
    history = json.loads((folder / "history.json").read_text())
    last = max(entry["step"] for entry in history)
    assert last < 8 * STEPS_PER_EPOCH, "early stopping did not fire"
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    main(arguments(place, "stopped", *flags, "--resume_from_checkpoint"))
    after = load_file(folder / "model.safetensors")
    assert max(entry["step"] for entry in json.loads((folder / "history.json").read_text())) == last
    assert all(torch.equal(before[name], after[name]) for name in before)
