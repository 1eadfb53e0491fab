"""A classifier as ONNX: onnxruntime's answers are torch's, for any batch, length and mask."""

import json

import numpy as np
import pytest
import torch

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification
from hf_ecgmamba.onnx import export_onnx, main

onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra `onnx`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `onnx`)")

LEADS = ("I", "II", "V1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small classifier whose scan has both directions, optional leads and both kinds of pooling."""
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=LEADS,
        optional_leads=LEADS,
        hidden_size=32,
        num_hidden_layers=1,
        d_state=4,
        d_conv=5,
        pooling="mean_max",
        num_labels=3,
        id2label={0: "NORM", 1: "AFIB", 2: "PVC"},
        problem_type="multi_label_classification",
        thresholds=[0.25, 0.5, 0.75],
    )
    folder = tmp_path_factory.mktemp("onnx")
    EcgMambaForSequenceClassification(config).save_pretrained(folder)
    EcgMambaFeatureExtractor.from_model_config(config).save_pretrained(folder)
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def session(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(folder):
    return EcgMambaForSequenceClassification.from_pretrained(folder).eval()


def run(session, values, attention_mask=None, lead_mask=None):
    batch, leads, time = values.shape
    attention_mask = torch.ones(batch, time, dtype=torch.bool) if attention_mask is None else attention_mask
    lead_mask = torch.ones(batch, leads, dtype=torch.bool) if lead_mask is None else lead_mask
    inputs = {"input_values": values, "attention_mask": attention_mask, "lead_mask": lead_mask}
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 7, 8, 9, 250, 1000, 1003, 6001])
def test_any_batch_and_length_gives_torchs_logits(session, model, batch, time):
    values = torch.randn(batch, len(LEADS), time, generator=torch.Generator().manual_seed(time))
    with torch.inference_mode():
        expected = model(values).logits
    np.testing.assert_allclose(run(session, values), expected.numpy(), atol=1e-4, rtol=0)


def test_padding_and_missing_leads_are_masked_as_in_torch(session, model):
    values = torch.randn(3, len(LEADS), 777, generator=torch.Generator().manual_seed(1))
    attention_mask = torch.arange(777) < torch.tensor([[777], [400], [1]])
    lead_mask = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    with torch.inference_mode():
        expected = model(values, attention_mask, lead_mask).logits
        alone = model(values[1:2, :, :400], lead_mask=lead_mask[1:2]).logits
    came = run(session, values, attention_mask, lead_mask)
    np.testing.assert_allclose(came, expected.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(came[1:2], alone.numpy(), atol=1e-4, rtol=0)
    # what stands under the masks is not looked at
    hidden = torch.where(attention_mask[:, None] & lead_mask[..., None], values, torch.tensor(1e3))
    np.testing.assert_allclose(run(session, hidden, attention_mask, lead_mask), came, atol=1e-5, rtol=0)


def test_the_file_says_what_a_reader_must_know(session, model):
    said = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["leads"] == said["optional_leads"] == list(LEADS)
    assert said["labels"] == ["NORM", "AFIB", "PVC"]
    assert said["thresholds"] == [0.25, 0.5, 0.75]
    assert (said["sampling_rate"], said["window_seconds"], said["window_overlap"]) == (100.0, 10.0, 0.5)
    assert said["problem_type"] == "multi_label_classification"
    reading = EcgMambaFeatureExtractor.from_model_config(model.config)
    assert said["reading"]["normalization"] == reading.normalization
    assert said["reading"]["remove_baseline"] == reading.remove_baseline


def test_every_operator_is_onnxs_own(folder):
    graph = onnx.load(folder / "model.onnx")
    assert {opset.domain for opset in graph.opset_import} <= {"", "ai.onnx"}
    assert "Scan" in {node.op_type for node in graph.graph.node}


def test_int8_stores_weights_in_a_byte_and_answers_alike(folder, session, model, capsys):
    assert main([str(folder), "--int8"]) == 0
    assert "model.int8.onnx" in capsys.readouterr().out
    small = onnxruntime.InferenceSession(folder / "model.int8.onnx", providers=["CPUExecutionProvider"])
    types = [tensor.data_type for tensor in onnx.load(folder / "model.int8.onnx").graph.initializer]
    assert types.count(onnx.TensorProto.INT8) >= 4 * model.config.num_hidden_layers
    values = torch.randn(4, len(LEADS), 1000, generator=torch.Generator().manual_seed(2))
    came, expected = run(small, values), run(session, values)
    assert not np.array_equal(came, expected)
    np.testing.assert_allclose(came, expected, atol=0.05)


def test_a_file_that_does_not_answer_as_torch_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ecgmamba.onnx.TOLERANCE", -1.0)
    reading = EcgMambaFeatureExtractor.from_model_config(model.config)
    with pytest.raises(ValueError, match="ONNX logits differ"):
        export_onnx(model, reading, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_without_the_extra_one_line_names_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert main([str(folder), "--output", str(folder / "other.onnx")]) == 2
    assert "hf-human-signals[onnx]" in capsys.readouterr().err
    assert not (folder / "other.onnx").exists()


def test_a_folder_that_is_none_gives_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
