"""LLMs to which embeddings, mask or positions mean something else: refused in one line, or batched as they need it."""

import copy

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.supported_llms import families, row_of
from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor, backbone_trial
from hf_mse_adapter.backbone_trial import reading_of
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer

GEMMA = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 400,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
BERT = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BART = {
    "vocab_size": 400,
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
XLSTM = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_heads": 4,
    "num_blocks": 2,
    "num_hidden_layers": 2,
    "chunk_size": 8,
}
TEXTS = ("no", "it is great fun and what a film, I really love it", "I love it")


def build(name, fields, seed=0):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**fields)
    llm = AutoModelForCausalLM.from_config(config).eval()
    for parameter in llm.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return llm


def adapter_config(**fields):
    return MseAdapterConfig(audio_dim=5, vision_dim=4, label_step=0.5, dropout=0.0, **fields)


def adapted(llm, **fields):
    model = MseForConditionalGeneration.from_backbone(llm, adapter_config(**fields)).eval()
    for parameter in model.adapter.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def clips():
    generator = torch.Generator().manual_seed(1)
    return [
        {"text": text, "label": label, "audio": torch.randn(steps, 5, generator=generator)}
        for text, label, steps in zip(TEXTS, (-2.0, 3.0, 1.0), (3, 9, 1), strict=True)
    ]


def processor_for(side="left"):
    return MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4, label_step=0.5, padding_side=side)


REFUSED = {
    "needs_tokens": ("Gemma3nText", GEMMA | {"laurel_rank": 8}, "computes something else from embeddings"),
    "looks_tokens_up": ("Gemma4Text", GEMMA | {"global_head_dim": 16}, "does not run by inputs_embeds alone"),
    "sees_later_tokens": ("Bert", BERT, "sees later tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    name, fields, reason = REFUSED[case]
    llm = build(name, fields)
    before = copy.deepcopy(llm.state_dict())
    with pytest.raises(ValueError, match=rf"the LLM is a {type(llm).__name__}, which {reason}.*; expected") as caught:
        get_peft_model(llm, adapter_config())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=reason):
        MseForConditionalGeneration.from_backbone(llm, adapter_config())
    assert all(torch.equal(value, before[key]) for key, value in llm.state_dict().items())


def test_on_meta_too():
    name, fields, reason = REFUSED["needs_tokens"]
    with torch.device("meta"):
        llm = build(name, fields)
    with pytest.raises(ValueError, match=reason):
        MseForConditionalGeneration.from_backbone(llm, adapter_config())


BLIND = {"Bart": BART, "Roberta": BERT | {"is_decoder": True}, "xLSTM": XLSTM}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BLIND)
def test_texts_in_company_get_their_own_answers(name, side):
    model, processor = adapted(build(name, BLIND[name]), head="beside"), processor_for(side)
    reading = reading_of(model.language_model)
    assert not reading.reads_mask
    together = processor.collate(clips())
    alone = [processor.collate([clip]) for clip in clips()]
    for method in ("expected", "head", "greedy", "constrained"):
        writes = reading.generates and not reading.failed_to_generate
        if method in ("greedy", "constrained") and not writes:
            with pytest.raises(ValueError, match=r"whose generate\(\) (fails|writes something else) from embeddings"):
                model.predict(together, processor.answers, method)
            continue
        got = model.predict(together, processor.answers, method)
        expected = [model.predict(one, processor.answers, method)[0] for one in alone]
        assert [answer.text for answer in got] == [answer.text for answer in expected]
        if method in ("expected", "head"):
            values = [[answer.value for answer in answers] for answers in (got, expected)]
            torch.testing.assert_close(*map(torch.tensor, values), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BLIND)
def test_loss_logits_and_gradients_are_those_of_single_texts(name):
    model, processor = adapted(build(name, BLIND[name]), head="beside").train(), processor_for()
    together, count = processor.collate(clips()), 0
    alone = [processor.collate([clip]) for clip in clips()]
    count = sum(int((one["labels"] != -100).sum()) for one in alone)
    counted = {"num_items_in_batch": count, "num_samples_in_batch": len(alone)}
    outputs = model(**together, **counted)
    outputs.loss.backward()
    got = [parameter.grad.clone() for parameter in model.adapter.parameters() if parameter.grad is not None]
    model.zero_grad()
    singles = [model(**one, **counted) for one in alone]
    loss = sum(single.loss for single in singles)
    torch.testing.assert_close(outputs.loss, loss, atol=1e-4, rtol=1e-4)
    loss.backward()
    expected = [parameter.grad for parameter in model.adapter.parameters() if parameter.grad is not None]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * float(other.abs().max()) + 1e-5, rtol=1e-3)
    # logit_positions count in the batch as it was given, labels too
    labels = torch.nn.functional.pad(together["labels"], (0, 1), value=-100)
    offset = labels.shape[1] - 1 - together["labels"].shape[1]
    for row, single in enumerate(singles):
        targets = labels[row, outputs.logit_positions[row] - offset + 1]
        single_labels = torch.nn.functional.pad(alone[row]["labels"], (0, 1), value=-100)[0]
        single_targets = single_labels[single.logit_positions[0] + 1]
        assert targets[targets != -100].tolist() == single_targets[single_targets != -100].tolist()
        torch.testing.assert_close(
            outputs.logits[row][targets != -100], single.logits[0][single_targets != -100], atol=1e-3, rtol=1e-3
        )


def test_head_on_lower_layers():
    model, processor = adapted(build("xLSTM", XLSTM), head="alone", head_layers=(1, 2)), processor_for()
    got = model(**processor.collate(clips())).head_output
    expected = torch.cat([model(**processor.collate([clip])).head_output for clip in clips()])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert got.std() > 1e-3


def test_sampled_answers_stand_in_their_rows():
    """Several answers a prompt, and a grammar that asks which prompt it is."""
    model, processor = adapted(build("Bart", BART)), processor_for()
    batch = {key: value for key, value in processor.collate(clips()).items() if key != "labels"}
    allowed = {0: 10, 1: 11, 2: 12}
    tokens = model.generate(
        **batch,
        max_new_tokens=2,
        min_new_tokens=2,
        num_return_sequences=2,
        forced_eos_token_id=None,
        do_sample=True,
        pad_token_id=0,
        prefix_allowed_tokens_fn=lambda index, _: [allowed[index // 2], 20],
    )
    assert tokens.shape == (6, 2)
    for row, written in enumerate(tokens.tolist()):
        assert set(written) <= {allowed[row // 2], 20}


def test_tried_once_for_a_config_and_quietly(monkeypatch):
    llm, other = build_backbone("Llama", num_hidden_layers=3), build_backbone("Llama", num_hidden_layers=3, seed=1)
    state = torch.get_rng_state()
    reading = reading_of(llm)
    assert torch.equal(state, torch.get_rng_state())
    assert reading == backbone_trial.Reading()
    monkeypatch.setattr(backbone_trial, "small_llm", None)
    assert reading_of(other) == reading


def test_window_is_tried_within_and_beyond():
    """The small LLM's window is shorter than a trial's longest text, however long the real one is."""
    llm = build_backbone("Mistral", sliding_window=300)
    small = backbone_trial.small_llm(type(llm), llm.config)
    assert small.config.sliding_window < max(backbone_trial.LENGTHS)
    assert llm.config.sliding_window == 300
    assert small.config.num_hidden_layers == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_each_family_is_right_or_refused(family):
    """`python benchmarks/supported_llms.py` writes the table of all."""
    row = row_of(family)
    assert row[2] != "WRONG", row[3]
