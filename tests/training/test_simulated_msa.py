"""The embedded default: clips whose label needs all three modalities, and an LLM built on the spot."""

import numpy as np
import pytest
import torch

from training.data.simulated_msa import CLASSES, load_simulated_msa
from training.data.tiny_language_model import build_tiny_language_model

WORTH = {"hated": -1, "loathed": -1, "disliked": -0.5, "regretted": -0.5, "watched": 0, "saw": 0, "liked": 0.5}
WORTH |= {"enjoyed": 0.5, "loved": 1, "adored": 1}


def parts(rows):
    """What words, tone and face say, told from the features alone."""
    words = [next(WORTH[word] for word in str(text).split() if word in WORTH) for text in rows["text"]]
    tone = [audio[:, 1].mean() for audio in rows["audio"]]
    face = [vision[:, 1].mean() for vision in rows["vision"]]
    return np.array([words, tone, face]).T


def test_the_label_needs_all_three_modalities():
    rows = load_simulated_msa(600)["train"]
    evidence, labels = parts(rows), np.asarray(rows["label"])

    def explained(columns):
        design = np.c_[evidence[:, columns], np.ones(len(labels))]
        residual = labels - design @ np.linalg.lstsq(design, labels, rcond=None)[0]
        return 1 - residual.var() / labels.var()

    assert explained([0, 1, 2]) > 0.9
    for pair in ([0, 1], [0, 2], [1, 2]):
        assert 0.5 < explained(pair) < 0.8


def test_the_seed_decides_everything_and_splits_do_not_overlap():
    one, two = load_simulated_msa(60, seed=4), load_simulated_msa(60, seed=4)
    assert {split: len(rows) for split, rows in one.items()} == {"train": 40, "valid": 10, "test": 10}
    for split in one:
        np.testing.assert_array_equal(one[split]["label"], two[split]["label"])
        np.testing.assert_array_equal(one[split][0]["audio"], two[split][0]["audio"])
    ids = [sample_id for rows in one.values() for sample_id in rows["id"]]
    assert len(set(ids)) == 60
    assert not np.array_equal(load_simulated_msa(60, seed=5)["train"]["label"], one["train"]["label"])


def test_classes_are_the_signs_of_the_sums():
    sums, names = load_simulated_msa(60)["train"]["label"], load_simulated_msa(60, "classification")["train"]["label"]
    assert [CLASSES[int(np.sign(value)) + 1] for value in sums] == list(names)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="num_samples must be at least 6"):
        load_simulated_msa(5)


@pytest.mark.parametrize("text", ["i loved it, -0.33!", "愤怒 和 高兴", "naïve 🙂\n"])
def test_the_tiny_tokenizer_writes_what_it_reads(text):
    _, tokenizer = build_tiny_language_model(["i loved the film"])
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_tiny_llm_is_frozen_and_the_same_for_the_same_seed():
    state = torch.get_rng_state()
    one, tokenizer = build_tiny_language_model(["a text"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    two, _ = build_tiny_language_model(["a text"], seed=1)
    other, _ = build_tiny_language_model(["a text"], seed=2)
    ids = tokenizer("a text", return_tensors="pt").input_ids
    assert torch.equal(one(ids).logits, two(ids).logits) and not torch.equal(one(ids).logits, other(ids).logits)
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_a_pseudo_tokens_place_reaches_the_last_position():
    """Why the weights are drawn wider than Qwen2's own: what stands early in the prompt must be heard at its end."""
    llm, _ = build_tiny_language_model(["a text"])
    embeds = llm.get_input_embeddings()(torch.arange(20)[None])
    hidden = []
    for scale in (1, -1):
        changed = embeds.clone()
        changed[:, 2:6] *= scale
        hidden.append(llm.model(inputs_embeds=changed).last_hidden_state[0, -1])
    assert (hidden[0] - hidden[1]).norm() > 0.1 * hidden[0].norm()
