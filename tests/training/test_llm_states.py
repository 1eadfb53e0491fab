"""An LLM's states that training keeps are those of each prompt alone, and a dialogue is read once."""

import pytest
import torch

from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer
from training.data.msa_batches import MsaSamples
from training.data.simulated_msa import load_simulated_msa
from training.llm_states import llm_states_of_samples, prompts_within_others


class Words:
    def __init__(self, words):
        self._words = words

    def words(self):
        return self._words


@pytest.fixture
def model_and_processor():
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, mixer_dim=16, head="alone", head_layers=(1, 3), fusion="head")
    model = MseForConditionalGeneration.from_backbone(build_backbone(num_hidden_layers=4), config).eval()
    return model, MseProcessor.from_config(config, build_tokenizer())


def dialogue(turns):
    return [
        {"text": text, "speaker": speaker, "context": [tuple(turn) for turn in turns[:place]]}
        for place, (speaker, text) in enumerate(turns)
    ]


TURNS = [("Ann", "I love it."), ("Bob", "Really? Why?"), ("Ann", "It is great fun."), ("Bob", "No.")]


def test_states_are_those_of_each_prompt_alone_and_a_dialogue_is_one_pass(model_and_processor, tmp_path, monkeypatch):
    model, processor = model_and_processor
    words = [*dialogue(TURNS), *dialogue(TURNS[1:]), {"text": "alone"}]
    expected = torch.cat([model.llm_states(**processor(**sample)) for sample in words])
    seen = []
    original = model.llm_states
    monkeypatch.setattr(model, "llm_states", lambda **batch: seen.append(len(batch["input_ids"])) or original(**batch))
    states = llm_states_of_samples(model, processor, Words(words), tmp_path)
    torch.testing.assert_close(states, expected)
    # the first utterance of a dialogue has no heading before it
    assert sum(seen) == 5
    kept = llm_states_of_samples(model, processor, Words(words), tmp_path)
    assert torch.equal(kept, states) and sum(seen) == 5
    llm_states_of_samples(model, processor, Words(words[1:]), tmp_path)
    assert sum(seen) > 5
    next(tmp_path.glob("*.safetensors")).write_bytes(b"cut")
    torch.testing.assert_close(llm_states_of_samples(model, processor, Words(words), tmp_path), expected)


def test_another_llm_has_other_states(model_and_processor, tmp_path):
    model, processor = model_and_processor
    words = Words([{"text": "alone"}])
    before = llm_states_of_samples(model, processor, words, tmp_path)
    model.set_language_model(build_backbone(num_hidden_layers=4, seed=1))
    assert not torch.equal(llm_states_of_samples(model, processor, words, tmp_path), before)


def test_prompts_within_others():
    rows = [[1, 2], [1, 2, 3], [1], [2, 3], [1, 2, 3, 4], [2, 3], [1, 9]]
    assert prompts_within_others([torch.tensor(row) for row in rows]) in (
        [4, 4, 4, 3, 4, 3, 6],
        [4, 4, 4, 5, 4, 5, 6],
    )


def test_samples_hand_out_their_states_and_lose_modalities():
    dataset = load_simulated_msa(60)["train"]
    samples = MsaSamples(dataset, modality_dropout=0.5, seed=3)
    samples.llm_states = torch.arange(len(dataset))[:, None, None].float()
    drawn = samples.__getitems__([(row, 0) for row in range(len(dataset))])
    assert [int(sample["llm_states"]) for sample in drawn] == list(range(len(dataset)))
    for modality in ("audio", "vision"):
        missing = sum(sample[modality] is None for sample in drawn) / len(drawn)
        assert 0.2 < missing < 0.8
    assert all(sample["audio"] is not None for sample in samples.__getitems__(range(len(dataset))))
