"""Answers: every label has a text and back, and what the tree scores is what each candidate scores alone."""

import numpy as np
import pytest
import torch
import transformers
from peft import get_peft_model

from hf_mse_adapter.answers import AnswerFormat, left_padded_prompts, takes_tree_mask
from hf_mse_adapter.configuration_mse_adapter import MseAdapterConfig, MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer

EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}
TWELVE = {index: f"class {index}" for index in range(12)}  # the tokens of "1" begin those of "10"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize(
    "label_range, step, count, texts",
    [
        ((-3, 3), 1 / 3, 19, {-1 / 3: "-0.33", 0.0: "0.00", 2 / 3: "0.67", -3: "-3.00"}),
        ((-3, 3), 0.1, 61, {-0.1: "-0.1", 0.0: "0.0", 0.3: "0.3"}),
        ((-1, 1), 0.2, 11, {0.2: "0.2", 1: "1.0"}),
        ((-3, 3), 0.25, 25, {0.25: "0.25", -2.75: "-2.75"}),
        ((0, 10), 1, 11, {10: "10", 0: "0"}),
        ((-1, 1), 1 / 6, 13, {1 / 6: "0.17", -5 / 6: "-0.83"}),
    ],
)
def test_numbers_keep_their_resolution(tokenizer, label_range, step, count, texts):
    answers = AnswerFormat(tokenizer, "regression", label_range, step)
    assert len(answers.candidates) == len(set(answers.texts)) == count
    for label, text in texts.items():
        assert answers.text_of(label) == text
        assert answers.parse(text).value == pytest.approx(label, abs=1e-12)  # a third comes back as a third
    for candidate in answers.candidates:
        assert answers.parse(answers.text_of(candidate)).value == candidate


@pytest.mark.parametrize("text, value", [("-0.8", -0.8), (" 1.3\n", 1.3), ("+2", 2.0), ("-0.0", 0.0), ("0.25", 0.25)])
def test_numbers_are_read(tokenizer, text, value):
    prediction = AnswerFormat(tokenizer).parse(text)
    assert prediction.value == value and str(prediction.value) == str(value) and prediction.problem is None


@pytest.mark.parametrize(
    "text", ["", "-", "0.", ".5", "3.1", "-30", "0,5", "1.0 .", "--1", "nan", "inf", "1e0", "１.0"]
)
def test_what_is_no_answer_is_reported_and_no_zero(tokenizer, text):
    prediction = AnswerFormat(tokenizer).parse(text)
    assert prediction.value is None and repr(text) in prediction.problem


def test_classes_by_index_and_by_word(tokenizer):
    by_index = AnswerFormat(tokenizer, "classification", id2label=EMOTIONS)
    assert by_index.text_of("joy") == by_index.text_of(1) == "1"
    assert by_index.parse("2").value == 2
    by_word = AnswerFormat(tokenizer, "classification", id2label=EMOTIONS, label_words=True)
    assert by_word.text_of(1) == "joy" and by_word.parse("joy").value == 1
    for answers, wrong in ((by_index, "joy"), (by_index, "3"), (by_index, "-1"), (by_word, "1"), (by_word, "joyful")):
        assert answers.parse(wrong).value is None


@pytest.mark.parametrize("label", [3.2, -3.01, float("nan"), float("inf"), None, "1.0"])
def test_labels_outside_the_range_are_refused(tokenizer, label):
    with pytest.raises(ValueError, match=r"the label must be a number from -3.0 to 3.0, but is"):
        AnswerFormat(tokenizer).text_of(label)


@pytest.mark.parametrize("label", [3, -1, 0.5, "sad", None])
def test_unknown_classes_are_refused(tokenizer, label):
    with pytest.raises(ValueError, match="the label must be one of"):
        AnswerFormat(tokenizer, "classification", id2label=EMOTIONS).text_of(label)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"label_step": 0.35}, "whole number of steps"),
        ({"label_step": -1}, "label_step must be positive"),
        ({"label_range": (1, 1)}, "label_range"),
        ({"task": "classification"}, "id2label"),
        ({"task": "classification", "id2label": {1: "a", 2: "b"}}, "id2label"),
        ({"task": "classification", "id2label": {0: "a", 1: "a"}}, "differently"),
    ],
)
def test_bad_formats_are_refused(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        AnswerFormat(tokenizer, **arguments)


def test_a_tokenizer_that_cannot_write_the_answer_is_refused():
    unknown = build_tokenizer()
    unknown.decode = lambda ids, **_: "?"
    with pytest.raises(ValueError, match=r"cannot write the answer '-3\.0'"):
        AnswerFormat(unknown)


def test_generated_tokens_are_read_up_to_the_end_token(tokenizer):
    answers = AnswerFormat(tokenizer)
    end = answers.end_token_id
    rows = [answers.token_ids[0] + [end, 7], answers.token_ids[-1] + [end, end]]
    width = max(map(len, rows))
    new_token_ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    assert [prediction.value for prediction in answers.parse_tokens(new_token_ids)] == [-3.0, 3.0]


@pytest.mark.parametrize("arguments", [{}, {"label_step": 1 / 3}, {"task": "classification", "id2label": TWELVE}])
def test_grammar_admits_the_candidates_and_nothing_else(tokenizer, arguments):
    answers = AnswerFormat(tokenizer, **arguments)
    written, unfinished = set(), [()]
    while unfinished:
        prefix = unfinished.pop()
        for token in answers.prefix_allowed_tokens_fn(0, torch.tensor(prefix, dtype=torch.long)):
            if token == answers.end_token_id:
                written.add(tokenizer.decode(prefix))
            else:
                unfinished.append((*prefix, token))
    assert written == set(answers.texts)


def build(llm, tokenizer, **fields):
    """A model with a new adapter, its processor, and a batch of three clips that lack different things."""
    config = MseConfig(**{"audio_dim": 3, "vision_dim": 2, "label_step": 1 / 3, **fields})
    torch.manual_seed(0)
    model = MseForConditionalGeneration.from_backbone(llm, config).eval()
    clips = [
        {"text": "I love it", "audio": torch.randn(5, 3), "vision": torch.randn(4, 2)},
        {"text": "what a long and winding story that was", "audio": None, "vision": torch.randn(2)},
        {"text": "no", "audio": torch.randn(2, 3), "vision": None},
    ]
    return model, MseProcessor.from_config(config, tokenizer), clips


@torch.no_grad()
def scores_one_by_one(model, answers, batch):
    """Each candidate's log-likelihood, by a forward pass of its own after an unpadded prompt, in float64."""
    llm = model.language_model
    embed = llm.get_input_embeddings()
    endings = [[*ids, answers.end_token_id] for ids in answers.token_ids]
    if not any(a != b and b[: len(a)] == a for a in answers.token_ids for b in answers.token_ids):
        endings = answers.token_ids
    prompts = model.prepare_inputs(**batch)
    scores = torch.zeros(len(batch["input_ids"]), len(endings))
    for row, mask in enumerate(prompts["attention_mask"].bool()):
        prompt = prompts["inputs_embeds"][row][mask]
        for column, ids in enumerate(endings):
            embeds = torch.cat([prompt, embed(torch.tensor(ids))])[None]
            logits = llm(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
            scores[row, column] = logits[range(len(ids)), ids].sum()
    return scores


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Glm", "Mistral", "Gemma2", "GPTNeoX", "OPT"])
def test_tree_scores_equal_each_candidate_alone(tokenizer, architecture):
    model, processor, clips = build(build_backbone(architecture), tokenizer)
    expected = scores_one_by_one(model, processor.answers, processor.collate(clips))
    assert expected.std(dim=1).min() > 0.1  # candidates differ by far more than the tolerance
    for side in ("left", "right"):
        processor.padding_side = side
        scores = processor.answers.score_candidates(model, processor.collate(clips))
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
        labelled = processor.collate([{**clip, "label": 1.0} for clip in clips])
        torch.testing.assert_close(
            processor.answers.score_candidates(model, labelled), expected, atol=1e-4, rtol=0, msg="sees its label"
        )
    alone = torch.cat([processor.answers.score_candidates(model, processor.collate([clip])) for clip in clips])
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0)
    assert takes_tree_mask(model.language_model, 60)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_class_beginning_another(tokenizer, attention):
    llm = build_backbone("Qwen2", attn_implementation=attention)
    model, processor, clips = build(llm, tokenizer, task="classification", id2label=TWELVE)
    batch = processor.collate(clips)
    scores = processor.answers.score_candidates(model, batch)
    torch.testing.assert_close(scores, scores_one_by_one(model, processor.answers, batch), atol=1e-4, rtol=0)
    for prediction in model.predict(batch, processor.answers):
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-12) and len(prediction.probabilities) == 12
        assert prediction.value == max(range(12), key=prediction.probabilities.__getitem__)


def test_llms_without_tree_mask_score_rows(tokenizer):
    recurrent = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, initializer_range=0.5)
    )
    alibi = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    )
    short_window = build_backbone("Mistral", sliding_window=16)
    for llm in (recurrent, alibi, short_window):
        model, processor, clips = build(llm.eval(), tokenizer, scales=(8, 32, 16))
        batch = processor.collate(clips[:1])
        assert not takes_tree_mask(llm, batch["input_ids"].shape[1])
        scores = processor.answers.score_candidates(model, batch)
        torch.testing.assert_close(scores, scores_one_by_one(model, processor.answers, batch), atol=1e-4, rtol=0)


def test_an_llm_that_ignores_the_mask_is_found_out(tokenizer):
    class Careless(transformers.LlamaForCausalLM):
        def forward(self, *args, attention_mask=None, **kwargs):
            mask = None if attention_mask is not None and attention_mask.ndim == 4 else attention_mask
            return super().forward(*args, attention_mask=mask, **kwargs)

    assert not takes_tree_mask(Careless(build_backbone("Llama").config).eval(), 20)


def test_expected_value_is_the_mean_of_the_candidates(tokenizer):
    model, processor, clips = build(build_backbone("Llama"), tokenizer)
    batch = processor.collate(clips)
    weights = processor.answers.score_candidates(model, batch).double().softmax(dim=1).numpy()
    for prediction, weight in zip(model.predict(batch, processor.answers), weights, strict=True):
        values = np.array(processor.answers.candidates)
        mean = np.average(values, weights=weight)
        assert prediction.value == pytest.approx(mean) and -3 < prediction.value < 3
        assert prediction.spread == pytest.approx(np.average((values - mean) ** 2, weights=weight) ** 0.5)
    likeliest = model.predict(batch, processor.answers, "likeliest")
    assert [p.value for p in likeliest] == [processor.answers.candidates[i] for i in weights.argmax(axis=1)]


def test_the_median_errs_least_by_the_llms_own_distribution(tokenizer):
    answers = AnswerFormat(tokenizer)
    scores = 3 * torch.randn(50, len(answers.candidates), generator=torch.Generator().manual_seed(0))
    values = np.array(answers.candidates)
    distances = np.abs(values[:, None] - values[None])
    errors = scores.double().softmax(dim=1).numpy() @ distances
    chosen = [prediction.value for prediction in answers.predictions_of(scores, "median")]
    assert chosen == [answers.candidates[i] for i in errors.argmin(axis=1)]
    certain = torch.full((2, len(values)), -100.0)
    certain[0, 0] = certain[1, -1] = 0
    assert [prediction.value for prediction in answers.predictions_of(certain, "median")] == [-3.0, 3.0]


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma2"])
def test_constrained_generation_always_answers(tokenizer, architecture):
    """Random weights hardly ever write a number freely; constrained, each token is the best that is allowed."""
    model, processor, clips = build(build_backbone(architecture), tokenizer)
    answers = processor.answers
    for side in ("left", "right"):
        processor.padding_side = side
        predictions = model.predict(processor.collate(clips), answers, "constrained")
        assert all(prediction.value in answers.candidates for prediction in predictions)
        assert [p.text for p in predictions] == [greedy_walk(model, processor, clip) for clip in clips]


@torch.no_grad()
def greedy_walk(model, processor, clip):
    prompt = model.prepare_inputs(**processor.collate([clip]))["inputs_embeds"]
    written = []
    while written not in processor.answers.token_ids:
        allowed = {ids[len(written)] for ids in processor.answers.token_ids if ids[: len(written)] == written}
        tokens = model.get_input_embeddings()(torch.tensor([written], dtype=torch.long))
        logits = model.language_model(inputs_embeds=torch.cat([prompt, tokens], dim=1)).logits[0, -1]
        written.append(max(allowed, key=lambda token: logits[token].item()))
    return processor.answers.texts[processor.answers.token_ids.index(written)]


def test_greedy_generation_reports_what_is_no_answer(tokenizer, caplog):
    model, processor, clips = build(build_backbone("Llama"), tokenizer)
    predictions = model.predict(processor.collate(clips), processor.answers, "greedy")
    assert [p.value for p in predictions] == [None] * 3 and all(p.problem for p in predictions)
    assert "3 of 3 answers are no answers" in caplog.text


def test_greedy_generation_reads_all_that_was_written(tokenizer):
    """An LLM that writes -0.33 and stops: neither the sign nor the end is lost."""
    model, processor, clips = build(build_backbone("Llama"), tokenizer)
    script = [*processor.answers.token_ids[8], processor.answers.end_token_id]

    class Scripted(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, float("-inf"))
            forced[:, script[min(input_ids.shape[1], len(script) - 1)]] = 0
            return forced

    model.language_model._get_logits_processor = lambda *_, **__: transformers.LogitsProcessorList([Scripted()])
    predictions = model.predict(processor.collate(clips), processor.answers, "greedy")
    assert [p.value for p in predictions] == [pytest.approx(-1 / 3)] * 3


@pytest.mark.parametrize("method", ["greedy", "constrained"])
def test_the_llms_own_generation_config_changes_no_answer(tokenizer, method):
    model, processor, clips = build(build_backbone("Llama"), tokenizer)
    batch = processor.collate(clips)
    expected = [(p.value, p.text) for p in model.predict(batch, processor.answers, method)]
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123"]
    for wish in (
        {"num_beams": 3, "num_return_sequences": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"suppress_tokens": digits, "begin_suppress_tokens": digits, "bad_words_ids": [[digit] for digit in digits]},
        {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "min_new_tokens": 4},
        {"forced_eos_token_id": 7, "guidance_scale": 1.5, "exponential_decay_length_penalty": (1, 5.0)},
        {"do_sample": True, "temperature": 2.0, "penalty_alpha": 0.6, "top_k": 4, "max_time": 1e-9},
    ):
        model.language_model.generation_config = transformers.GenerationConfig(**wish)
        assert [(p.value, p.text) for p in model.predict(batch, processor.answers, method)] == expected


def test_peft_model_answers_the_same(tokenizer):
    model, processor, clips = build(build_backbone("Qwen2"), tokenizer)
    peft_model = get_peft_model(
        build_backbone("Qwen2"), MseAdapterConfig(audio_dim=3, vision_dim=2, label_step=1 / 3)
    ).eval()
    peft_model.base_model.adapter.load_state_dict(model.adapter.state_dict())
    batch = processor.collate(clips)
    for method in ("expected", "constrained"):
        expected = [p.value for p in model.predict(batch, processor.answers, method)]
        assert [p.value for p in peft_model.predict(batch, processor.answers, method)] == pytest.approx(expected)


def test_methods_that_do_not_fit_are_refused(tokenizer):
    model, processor, clips = build(build_backbone("Llama"), tokenizer, task="classification", id2label=EMOTIONS)
    for method in ("expected", "median", "magic"):
        with pytest.raises(ValueError, match="method must be one of"):
            model.predict(processor.collate(clips), processor.answers, method)


def test_prompts_end_in_the_last_column_and_hold_no_label(tokenizer):
    _, processor, clips = build(build_backbone("Llama"), tokenizer)
    expected = left_padded_prompts(processor.collate(clips))
    assert "labels" not in expected and expected["attention_mask"][:, -1].all()
    processor.padding_side = "right"
    found = left_padded_prompts(processor.collate([{**clip, "label": -0.4} for clip in clips]))
    assert found.keys() == expected.keys()
    real = expected["attention_mask"].bool()
    assert torch.equal(found["attention_mask"].bool(), real)
    for name in ("input_ids", "pseudo_token_mask", "text_mask"):
        assert torch.equal(found[name][real], expected[name][real]), name


def test_likelihoods_that_are_no_numbers_name_the_dtype():
    answers = AnswerFormat(build_tokenizer(), label_step=1.0)
    with pytest.raises(ValueError, match=r"in torch\.float16, gives candidates' likelihoods that are NaN"):
        answers.predictions_of(torch.full((1, 7), torch.nan, dtype=torch.float16), "expected")
