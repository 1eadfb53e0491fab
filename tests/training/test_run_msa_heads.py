"""Training a head that reads an LLM's lower layers: from a probe to a delivered folder."""

import numpy as np
import pytest
from transformers import pipeline

from training import run_msa
from training.data.msa_splits import has_one_case


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_head_that_starts_as_a_probe_of_lower_layers_is_delivered(task, tmp_path, capsys):
    target = tmp_path / "delivered"
    arguments = [
        "--num_samples",
        "60",
        "--task",
        task,
        "--head",
        "alone",
        "--head_layers",
        "1",
        "2",
        "--fusion",
        "head",
    ]
    arguments += ["--fit_head", "true", "--tiny_hidden_size", "32", "--modality_dropout", "0.3", "--seeds", "1", "2"]
    arguments += ["--num_train_epochs", "1", "--output_dir", str(tmp_path / "runs"), "--publish_to", str(target)]
    words = tmp_path / "card.yaml"
    words.write_text("license: cc-by-4.0\nlimits: Knows sixty clips.\n")
    results = run_msa.main([*arguments, "--card_notice", "Made for a test.", "--card", str(words)])
    assert "the head starts as a linear probe" in capsys.readouterr().out
    best = min(results, key=lambda seed: results[seed]["valid"]["mae_of_all"]) if task == "regression" else None
    if best:
        expected = (tmp_path / "runs" / f"seed_{best}" / "model.safetensors").read_bytes()
        assert (target / "model.safetensors").read_bytes() == expected
    assert not any(target.glob("checkpoint-*")) and not (target / "metrics.json").exists()
    card = (target / "README.md").read_text()
    assert "Made for a test." in card and "# delivered" in card
    assert "license: cc-by-4.0" in card and "Knows sixty clips." in card
    read = pipeline("multimodal-sentiment", model=str(target), trust_remote_code=True)
    assert ("value" if task == "regression" else "label") in read({"text": "i loved the film"})


def test_fit_head_wants_states_that_are_known(tmp_path):
    with pytest.raises(ValueError, match="fit_head is True, but fusion is 'prompt'"):
        run_msa.main(["--num_samples", "60", "--fit_head", "true", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    "content, message",
    [("- a", "expected a mapping of names to texts"), ("a: [", "is no yaml"), (None, "No such file")],
)
def test_a_card_that_is_none_is_refused_before_training(content, message, tmp_path):
    if content is not None:
        (tmp_path / "card.yaml").write_text(content)
    with pytest.raises((OSError, ValueError), match=message):
        run_msa.main(["--card", str(tmp_path / "card.yaml"), "--output_dir", str(tmp_path / "runs")])


def test_transcripts_of_one_case_are_found():
    dataset = {"text": np.array(["I DIDNT LIKE IT", "1984", "WELL"])}
    assert has_one_case(dataset)
    assert has_one_case({"text": np.array(["um well", "so"])})
    assert not has_one_case({"text": np.array(["UM WELL", "so"])})
    assert not has_one_case({"text": np.array(["我不想", "123"])})
