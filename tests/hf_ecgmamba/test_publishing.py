"""A published folder: complete, and loadable by someone who has nothing of ours."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor

from hf_ecgmamba.configuration_ecgmamba import EcgMambaConfig
from hf_ecgmamba.feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from hf_ecgmamba.modeling_ecgmamba import EcgMambaForMaskedModeling, EcgMambaForSequenceClassification
from hf_ecgmamba.pipeline_ecg_classification import EcgClassificationPipeline
from hf_ecgmamba.publishing import save_for_hub
from hf_ecgmamba.recording import read_recording
from training.fresh_process import run_fresh

LABELS = {0: "NORM", 1: "AFIB", 2: "MI"}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config = EcgMambaConfig(
        hidden_size=16, num_hidden_layers=1, d_state=4, id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
        problem_type="multi_label_classification", thresholds=[0.4, 0.5, 0.6],
    )  # fmt: skip
    return EcgMambaForSequenceClassification(config).eval(), EcgMambaFeatureExtractor.from_model_config(config)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "ecgmamba"
    return save_for_hub(
        *parts, folder, name="ECGMamba tiny", description="For tests.", dataset="noise", metrics={"macro_auc": 0.5}
    )


@pytest.fixture(scope="module")
def recording():
    signal = np.random.default_rng(0).normal(size=(12, 5000)).cumsum(axis=1).astype(np.float32) * 0.02
    return {"array": signal, "sampling_rate": 500.0}


def test_loads_and_predicts_with_nothing_of_ours(parts, folder, recording, tmp_path):
    """Issue: the model folder loads and predicts in a fresh process from an empty directory."""
    np.savez(tmp_path / "recording.npz", signal=recording["array"], sampling_rate=500.0)
    code = f"""
import json, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification
from transformers import pipeline
folder = {str(folder)!r}
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**extractor("recording.npz", return_tensors="pt")).logits
body = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(body).__name__ == "EcgMambaModel"
masked = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
assert type(masked).__name__ == "EcgMambaForMaskedModeling"
by_task = pipeline("ecg-classification", model=folder, trust_remote_code=True, device="cpu")
by_folder = pipeline(model=folder, trust_remote_code=True, device="cpu")
result, figure = by_task.plot("recording.npz", "recording.png")
assert by_folder("recording.npz") == result
print(json.dumps({{"logits": logits[0].tolist(), "result": result}}))
"""
    came = json.loads(run_fresh(code, tmp_path).splitlines()[-1])
    model, extractor = parts
    with torch.no_grad():
        expected = model(**extractor(recording, return_tensors="pt")).logits[0]
    assert came["logits"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert came["result"]["findings"] == [
        {**finding, "score": pytest.approx(finding["score"], abs=1e-5)}
        for finding in EcgClassificationPipeline(model=model, feature_extractor=extractor)(recording)["findings"]
    ]
    assert (tmp_path / "recording.png").stat().st_size > 10_000


def test_saving_what_was_loaded_as_remote_code_loads_again(folder, tmp_path):
    """Transformers' own way: save_pretrained of the pipeline, code and all."""
    code = f"""
from transformers import pipeline
first = pipeline("ecg-classification", model={str(folder)!r}, trust_remote_code=True, device="cpu")
first.save_pretrained("again")
import numpy
signal = numpy.random.default_rng(0).normal(size=(12, 1000)).astype("float32")
second = pipeline("ecg-classification", model="again", trust_remote_code=True, device="cpu")
assert second(signal, sampling_rate=100) == first(signal, sampling_rate=100)
"""
    run_fresh(code, tmp_path)


def test_in_process_save_of_the_pipeline_names_its_class(parts, tmp_path):
    pipe = EcgClassificationPipeline(model=parts[0], feature_extractor=parts[1])
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    impl = config["custom_pipelines"]["ecg-classification"]["impl"]
    assert impl == "pipeline_ecg_classification.EcgClassificationPipeline"
    assert (tmp_path / "pipeline_ecg_classification.py").exists()
    del parts[0].config.custom_pipelines


def test_publishes_from_an_installed_wheel(run_installed, folder, tmp_path):
    """Nothing of the clone is there: the wheel brings the card's template and the endpoint's files."""
    code = f"""
from hf_ecgmamba import EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, publishing
parts = [one.from_pretrained({str(folder)!r}) for one in (EcgMambaForSequenceClassification, EcgMambaFeatureExtractor)]
publishing.save_for_hub(*parts, "published", description="For tests.", dataset="noise")
"""
    run_installed(code, tmp_path)
    assert {path.name for path in (tmp_path / "published").iterdir()} == set(os.listdir(folder))
    assert "For tests." in (tmp_path / "published" / "README.md").read_text()


def test_folder_holds_what_the_hub_reads(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["EcgMambaForSequenceClassification"]
    for reference in config["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}" in (folder / f"{module}.py").read_text()
    card = (folder / "README.md").read_text()
    assert "| AFIB: atrial fibrillation | 0.500 |" in card and "| macro_auc | 0.5 |" in card and "For tests." in card
    assert {"handler.py", "requirements.txt", "preprocessor_config.json", "model.safetensors"} <= set(
        os.listdir(folder)
    )
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_model_in_memory_stays_as_it_was(parts, tmp_path):
    model, extractor = parts
    before = model.config.to_dict(), extractor.to_dict()
    save_for_hub(model, extractor, tmp_path)
    assert (model.config.to_dict(), extractor.to_dict()) == before


def test_saving_again_leaves_checkpoints_and_no_stale_shards(parts, recording, tmp_path):
    model, extractor = parts
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"kept")
    save_for_hub(model, extractor, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    save_for_hub(model, extractor, tmp_path)
    assert {file.name for file in tmp_path.glob("model*")} == {"model.safetensors", "modeling_ecgmamba.py"}
    save_for_hub(model, extractor, tmp_path, max_shard_size="20KB")
    loaded = EcgMambaForSequenceClassification.from_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_bytes() == b"kept"


def test_pre_trained_model_publishes_too(parts, tmp_path):
    model = EcgMambaForMaskedModeling(parts[0].config)
    save_for_hub(model, parts[1], tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["EcgMambaForMaskedModeling"]
    assert AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True).leads == parts[1].leads


def test_refusals(parts, tmp_path):
    model, extractor = parts
    other = EcgMambaFeatureExtractor.from_model_config(model.config, sampling_rate=250.0)
    with pytest.raises(ValueError, match=r"feature_extractor\.sampling_rate is 250\.0; expected 100\.0"):
        save_for_hub(model, other, tmp_path)
    with pytest.raises(ValueError, match="dataset is None"):
        save_for_hub(model, extractor, tmp_path, metrics={"macro_auc": 0.9})
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_numbers_whoever_made_them(parts, tmp_path):
    metrics = {"a": np.float64(0.5), "b": np.float32(0.25), "c": torch.tensor(0.75), "d": 1, "e": np.array([0.125])}
    save_for_hub(*parts, tmp_path, dataset="noise", metrics=metrics)
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    written = {one.metric_type: one.metric_value for one in results}
    assert written == {"a": 0.5, "b": 0.25, "c": 0.75, "d": 1, "e": 0.125}
    for wrong in ("0.5", None, [0.5], True):
        with pytest.raises(ValueError, match=r"metrics: macro_auc is .*; expected a number"):
            save_for_hub(*parts, tmp_path, dataset="noise", metrics={"macro_auc": wrong})


def test_weights_in_half_the_bytes_load_as_what_the_example_was_made_with(tmp_path):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        hidden_size=16, num_hidden_layers=1, num_labels=2, problem_type="multi_label_classification"
    )
    model, extractor = (
        EcgMambaForSequenceClassification(config).eval(),
        EcgMambaFeatureExtractor.from_model_config(config),
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_for_hub(model, extractor, tmp_path, weights_dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    kept = ("A_log", "D", "dt_bias")
    assert {name.rpartition(".")[2] for name, w in stored.items() if w.dtype == torch.float32} == set(kept)
    loaded = EcgMambaForSequenceClassification.from_pretrained(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for name, weight in loaded.state_dict().items():
        expected = before[name] if name.endswith(kept) else before[name].half().float()
        assert torch.equal(weight, expected), name
    said = json.loads((tmp_path / "example_output.json").read_text())
    assert EcgClassificationPipeline(model=loaded, feature_extractor=extractor)(tmp_path / "example.csv") == said


def test_weights_that_float16_cannot_hold_are_refused_before_anything_is_written(parts, tmp_path):
    model = copy.deepcopy(parts[0])
    with torch.no_grad():
        model.classifier.bias[0] = 1e6
    with pytest.raises(ValueError, match="the values of classifier"):
        save_for_hub(model, parts[1], tmp_path / "folder", weights_dtype=torch.float16)
    assert not (tmp_path / "folder").exists()


def test_a_recording_of_ones_own_becomes_the_example(parts, tmp_path):
    signal = np.random.default_rng(0).normal(size=(12, 1000)).cumsum(axis=1).round(3) * 0.02
    save_for_hub(*parts, tmp_path, example=signal)
    came = read_recording(tmp_path / "example.csv")
    np.testing.assert_allclose(came.signal, signal, atol=6e-4)
    assert (came.sampling_rate, came.leads) == (100.0, parts[0].config.leads)


@pytest.mark.parametrize("example", [np.zeros(1000), np.zeros((11, 1000)), np.full((12, 1000), np.nan)])
def test_an_example_of_another_shape_is_refused(parts, tmp_path, example):
    with pytest.raises(ValueError, match="example is"):
        save_for_hub(*parts, tmp_path, example=example)


def test_the_card_has_what_a_visitor_and_the_hub_look_for(parts, tmp_path):
    by_class = {"NORM": {"auc": 0.91, "f1": 0.8}, "AFIB": {"auc": 0.97, "f1": 0.7}}
    folder = save_for_hub(
        *parts, tmp_path, name="tiny", dataset="PTB-XL", metrics={"macro_auc": 0.5}, hub_datasets=["someone/ptb-xl"],
        metrics_by_class=by_class, metrics_by_group={"women": {"macro_auc": 0.9}, "men": {"macro_auc": 0.8}},
        limits="Not for children.", license="cc-by-4.0",
    )  # fmt: skip
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["datasets"] == ["someone/ptb-xl"]
    assert {"ecg", "time-series", "biosignal", "healthcare"} <= set(data["tags"])
    (example,) = data["widget"]
    said = json.loads((folder / "example_output.json").read_text())["findings"]
    assert example["src"] == "example.csv"
    assert example["output"] == [{"label": one["label"], "score": round(one["score"], 4)} for one in said]
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "macro_auc", "value": 0.5}]
    for line in ("| label | auc | f1 |", "| AFIB | 0.97 | 0.7 |", "| women | 0.9 |", "Not for children.", "@article{"):
        assert line in card.text
    assert "by sex, age and origin was not measured" not in card.text
    bare = save_for_hub(*parts, tmp_path / "bare")
    text = ModelCard.load(bare / "README.md", ignore_metadata_errors=False).text
    assert "by sex, age and origin was not measured" in text and "Measured by" not in text
    with pytest.raises(ValueError, match="metrics of AFIB are auc; expected auc, f1"):
        save_for_hub(*parts, tmp_path / "odd", metrics_by_class={**by_class, "AFIB": {"auc": 0.9}})
