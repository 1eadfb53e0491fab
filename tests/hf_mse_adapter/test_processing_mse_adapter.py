"""The processor: what the model gets is what the clip held, whatever it was batched with."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, MistralConfig

from hf_mse_adapter.processing_mse_adapter import MseProcessor
from tests.hf_mse_adapter.tiny_backbones import build_tokenizer

EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def processor(tokenizer):
    return MseProcessor(tokenizer, audio_dim=3, vision_dim=2, label_step=1 / 3)


def tokens_where(batch, tokenizer, mask, row=0):
    return tokenizer.decode(batch["input_ids"][row][mask[row].bool()])


def test_prompt_reads_as_in_the_paper(processor, tokenizer):
    batch = processor("I love it", labels=-1 / 3)
    pseudo = batch["pseudo_token_mask"][0]
    before, after = pseudo.nonzero()[0].item(), pseudo.nonzero()[-1].item() + 1
    ids = batch["input_ids"][0]
    assert pseudo.sum() == 4
    assert tokenizer.decode(ids[:before]).endswith("<Multimodal>")
    assert tokenizer.decode(ids[after:]).startswith("I love it</Multimodal>Sentiment intensity from -3.00 to 3.00:")
    assert tokens_where(batch, tokenizer, batch["text_mask"]) == "I love it"
    is_label = batch["labels"][0] != -100
    assert torch.equal(batch["labels"][0][is_label], ids[is_label])
    assert ids[is_label].tolist() == processor.answers.token_ids[8] + [tokenizer.eos_token_id]
    assert tokenizer.decode(ids[is_label], skip_special_tokens=True) == "-0.33"
    assert batch["label_values"].item() == pytest.approx(-1 / 3)  # not -0.33


def test_chinese_classification_and_label_words(tokenizer):
    labels = {0: "愤怒", 1: "高兴"}
    processor = MseProcessor(tokenizer, 3, 2, task="classification", id2label=labels, language="zh", label_words=True)
    batch = processor(["我很高兴", "滚"], labels=["高兴", 0])
    text = tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert "<多模态>" in text and "</多模态>" in text and "愤怒, 高兴" in text and text.endswith("高兴")
    assert tokens_where(batch, tokenizer, batch["text_mask"]) == "我很高兴"
    assert batch["label_values"].tolist() == [1, 0] and batch["label_values"].dtype == torch.int64


def test_context_shows_the_last_k_utterances_and_is_not_the_text(tokenizer):
    context = [("Ross", "Hi."), {"speaker": "Joey", "text": "How you doin'?"}, "(laughs)"]
    for k, expected in ((None, "Ross: Hi.\nJoey: How you doin'?\n(laughs)\n"), (1, "(laughs)\n"), (0, "")):
        processor = MseProcessor(tokenizer, 3, 2, "classification", id2label=EMOTIONS, num_context_utterances=k)
        batch = processor("Fine.", context=context, speaker="Ross")
        text = tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
        heading = "Conversation so far:\n" if expected else ""
        assert text.startswith(f"{heading}{expected}<Multimodal>Ross: Fine.</Multimodal>")
        assert tokens_where(batch, tokenizer, batch["text_mask"]) == "Fine."
        assert "neutral: 0, joy: 1, anger: 2" in text


def test_a_turn_reads_as_it_will_among_the_earlier_ones_where_the_llm_reads_words_alone():
    # as GPT-2's and most: a space belongs to the word behind it
    tokenizer = build_tokenizer(["Ann: how are you?\nBob: fine. fine."] * 9)
    assert tokenizer.tokenize(": fine.") == [":", "Ġfine", "."]
    processor = MseProcessor(tokenizer, 3, 2, prompt_template="{context}{speaker}{text}")
    before = processor("how are you?", context=["hm"], speaker="Ann")
    after = processor("fine.", context=["hm", ("Ann", "how are you?")], speaker="Bob")
    ids = before["input_ids"][0]
    assert torch.equal(after["input_ids"][0][: len(ids)], ids)
    assert tokenizer.decode(after["input_ids"][0], skip_special_tokens=True).endswith(
        "hm\nAnn: how are you?\nBob: fine."
    )
    assert tokens_where(after, tokenizer, after["text_mask"]) == " fine."
    limited = MseProcessor(tokenizer, 3, 2, prompt_template="{context}{speaker}{text}", max_text_tokens=1)
    assert limited("fine.", speaker="Bob")["text_mask"].sum() == 1
    assert tokenizer.decode(processor("", speaker="Bob")["input_ids"][0], skip_special_tokens=True) == "Bob: "
    # adapters with pseudo tokens were trained on the space as a token of its own
    apart = MseProcessor(tokenizer, 3, 2)("fine.", speaker="Bob")
    assert tokens_where(apart, tokenizer, apart["text_mask"]) == "fine."


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_samples_alone(tokenizer, side):
    processor = MseProcessor(tokenizer, audio_dim=3, vision_dim=2, padding_side=side)
    samples = [
        {"text": "yes", "audio": np.random.randn(5, 3), "vision": np.random.randn(2), "label": 1.0},
        {"text": "a much longer utterance than that", "audio": None, "vision": np.zeros((0, 2)), "label": -2.9},
        {"text": "", "audio": torch.randn(7, 3), "vision": [[0.1, 0.2]] * 3, "label": 0.0},
    ]
    together = processor.collate(samples)
    assert together["attention_mask"][:, 0 if side == "right" else -1].all()
    for row, sample in enumerate(samples):
        alone = processor.collate([sample])
        real = together["attention_mask"][row].bool()
        for name in ("input_ids", "pseudo_token_mask", "text_mask", "labels"):
            assert torch.equal(together[name][row][real], alone[name][0]), name
        assert (together["labels"][row][~real] == -100).all()
        assert not together["text_mask"][row][~real].any() and not together["pseudo_token_mask"][row][~real].any()
        for modality in ("audio", "vision"):
            steps = together[f"{modality}_attention_mask"][row].bool()
            values = together[f"{modality}_values"][row]
            assert torch.equal(values[steps], alone[f"{modality}_values"][0][: int(steps.sum())])
            assert not values[~steps].any()
    assert together["audio_attention_mask"].sum(dim=1).tolist() == [5, 0, 7]
    assert together["vision_attention_mask"].sum(dim=1).tolist() == [1, 0, 3]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_limits_keep_the_beginning_of_text_and_features_and_all_of_the_prompt(tokenizer, tmp_path, task):
    limits = {"max_text_tokens": 4, "max_audio_length": 5, "max_vision_length": 1}
    fields = {"task": task, "id2label": EMOTIONS if task == "classification" else None}
    MseProcessor(tokenizer, 3, 2, **fields, **limits).save_pretrained(tmp_path)
    processor, unlimited = MseProcessor.from_pretrained(tmp_path), MseProcessor(tokenizer, 3, 2, **fields)
    text = "an utterance that goes on and on"
    words = tokenizer(text, add_special_tokens=False).input_ids
    audio, vision = np.random.randn(9, 3), np.random.randn(4, 2)
    around = {"context": [("Ann", "Quite a long question before that, is it not?")], "speaker": "Ben", "labels": 1}
    cut = processor(text, audio, vision, **around)
    by_hand = unlimited(tokenizer.decode(words[:4]), audio[:5], vision[:1], **around)
    assert len(words) > 4 and cut.keys() == by_hand.keys()
    assert all(torch.equal(cut[name], by_hand[name]) for name in cut)
    for short in ({"text": "yes", "audio": audio[:5], "vision": vision[:1]}, {"text": "", "audio": None}):
        one, two = processor(**short), unlimited(**short)
        assert all(torch.equal(one[name], two[name]) for name in one)

    clips = [{"audio": audio, "vision": vision}]
    by_hand = unlimited.fit([{"audio": audio[:5], "vision": vision[:1]}]).feature_statistics
    assert processor.fit(clips).feature_statistics == by_hand


def test_prompt_alone_is_the_labelled_batch_without_its_label(processor):
    labelled, prompt = processor("yes", labels=1.0), processor("yes")
    assert "labels" not in prompt and "label_values" not in prompt
    assert torch.equal(labelled["input_ids"][labelled["labels"] == -100], prompt["input_ids"][0])


def test_words_never_melt_into_tags_nor_become_special_tokens(processor, tokenizer):
    for text in (tokenizer.eos_token, "<Multimodal>", ">", " x "):
        batch = processor(text)
        inside = batch["input_ids"][0][batch["text_mask"][0]]
        assert tokenizer.decode(inside) == text
        assert tokenizer.eos_token_id not in inside


def test_statistics_are_those_of_the_true_frames(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    # a mean far from zero would show a one-pass formula that cancels
    clips = [rng.normal([1e4, 0, 3], [1, 5, 0], (n, 3)).astype(np.float32) for n in (1, 40, 7, 300)]
    clips[1][3, 1] = np.nan
    clips[2][0, 1] = -np.inf
    processor = MseProcessor(tokenizer, audio_dim=3, vision_dim=2)
    processor.fit(iter([{"audio": clip, "vision": None} for clip in clips]))
    frames = np.concatenate(clips).astype(np.float64)
    frames[~np.isfinite(frames)] = np.nan
    statistics = processor.feature_statistics
    assert set(statistics) == {"audio"}
    np.testing.assert_allclose(statistics["audio"]["mean"], np.nanmean(frames, axis=0), rtol=1e-9)
    np.testing.assert_allclose(statistics["audio"]["std"], [*np.nanstd(frames[:, :2], axis=0), 1.0], rtol=1e-6)

    processor.save_pretrained(tmp_path)
    loaded = MseProcessor.from_pretrained(tmp_path)
    assert loaded.feature_statistics == statistics
    batch = loaded(["x"] * 4, audio=clips, vision=[None] * 4)
    values = batch["audio_values"][batch["audio_attention_mask"].bool()]
    assert torch.isfinite(values).all()
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(values[:, :2].std(dim=0), torch.ones(2), atol=1e-2, rtol=0)


def test_nan_and_infinity_are_replaced_and_counted(processor, caplog):
    audio = np.array([[1.0, np.nan, 3.0], [-np.inf, 5.0, 1e300]])
    batch = processor(["x", "y"], audio=[audio, None])
    assert batch["audio_values"][0].tolist() == [[1, 0, 3], [0, 5, 0]]
    assert processor.replaced_values == {"audio": 3, "vision": 0}
    assert "NaN" in caplog.text


def test_array_of_rows_as_parquet_gives_it(processor):
    rows = np.empty(2, dtype=object)
    rows[:] = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])]
    assert processor("x", audio=rows)["audio_values"].tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_what_holds_numbers_is_taken(processor):
    """Half precision, whole numbers, an array of objects, None for one that is missing, one array for a batch."""
    rows = [[1, 2, 3], [4, 5, 6]]
    for audio in (torch.tensor(rows, dtype=torch.bfloat16), torch.tensor(rows), np.array(rows, dtype=object)):
        assert processor("x", audio=audio)["audio_values"].tolist() == [rows]
    assert processor("x", audio=[[1, None, 3]])["audio_values"].tolist() == [[[1, 0, 3]]]
    together = np.arange(24.0).reshape(2, 4, 3)
    assert processor(["x", "y"], audio=together)["audio_values"].tolist() == together.tolist()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": "x", "audio": np.zeros((5, 2))}, r"audio must be \[time, 3\], but sample 0 has the shape \[5, 2\]"),
        ({"text": "x", "vision": np.zeros((1, 5, 2))}, r"vision must be \[time, 2\]"),
        ({"text": "x", "audio": "clip.npy"}, r"audio must hold numbers"),
        ({"text": "x", "audio": [[1.0], [1.0, 2.0]]}, r"audio must hold numbers"),
        ({"text": "x", "audio": [["1", "2", "3"]]}, r"audio must hold numbers .* it holds <U1"),
        ({"text": "x", "audio": np.ones((5, 3), dtype=complex)}, r"audio must hold numbers .* it holds complex128"),
        ({"text": "x", "audio": torch.ones(5, 3, dtype=torch.complex64)}, r"audio must hold numbers .* complex64"),
        ({"text": "x", "vision": np.zeros((5, 2), dtype="datetime64[s]")}, r"vision must hold numbers .* datetime64"),
        ({"text": "x", "vision": torch.eye(2).to_sparse()}, r"vision must hold numbers .*, but sample 0 does not"),
        ({"text": "x", "vision": torch.ones(5, 2, device="meta")}, r"vision must hold numbers"),
        ({"text": "x", "vision": 3}, r"vision must be \[time, 2\], but sample 0 has the shape \[\]"),
        ({"text": "half \ud83d"}, r"text must be Unicode, but sample 0 has the lone surrogate '\\ud83d'"),
        ({"text": ["x", "y"], "context": [None, "\ude00"]}, r"context must be Unicode, but sample 1"),
        ({"text": "x", "context": 3}, r"context must hold texts or \(speaker, text\), but sample 0 has 3"),
        ({"text": "x", "context": {"speaker": "Ann"}}, r"context must hold texts .* has \{'speaker': 'Ann'\}"),
        ({"text": ["a", "b"], "audio": 3}, r"audio must have one entry for each of the 2 texts, but is 3"),
        ({"text": None}, r"text must be a string or a list"),
        ({"text": ["a", None]}, r"text must be a string, but sample 1 has None"),
        ({"text": []}, r"text must be a string or a list"),
        ({"text": ["a", "b"], "audio": [None]}, r"audio must have one entry for each of the 2 texts, but has 1"),
        ({"text": "x", "labels": 3.5}, r"the label must be a number from -3.0 to 3.0, but is 3.5"),
        ({"text": "x", "labels": float("nan")}, r"the label must be a number"),
        ({"text": "x", "labels": "joy"}, r"the label must be a number"),
        ({"text": "x", "context": [3]}, r"context must hold texts"),
        ({"text": "x", "images": None}, r"takes no argument 'images'"),
    ],
)
def test_bad_input_is_named(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.parametrize(
    "field, value",
    [
        ("audio_dim", None),
        ("language", "fr"),
        ("padding_side", "top"),
        ("prompt_template", "{pseudo_tokens} only"),
        ("num_context_utterances", -1),
        ("max_text_tokens", 0),
        ("max_audio_length", 2.5),
        ("max_vision_length", True),
        ("label_step", 0.7),
        ("task", "ranking"),
        ("feature_statistics", {"audio": {"mean": [0.0], "std": [1.0]}}),
        ("feature_statistics", {"audio": {"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}}),
    ],
)
def test_bad_configuration_is_named(tokenizer, field, value):
    with pytest.raises(ValueError, match=field):
        MseProcessor(tokenizer, **{"audio_dim": 3, "vision_dim": 2, field: value})


def test_tokenizer_without_padding_or_beginning_token():
    bare = build_tokenizer()
    bare.pad_token = bare.bos_token = None
    batch = MseProcessor(bare, 3, 2)(["a", "much longer"], labels=[1.0, 2.0])
    assert batch["attention_mask"].sum(dim=1)[0] < batch["attention_mask"].shape[1]
    bare.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        MseProcessor(bare, 3, 2)


def test_loads_by_auto_processor_without_the_package(tokenizer, tmp_path):
    labels = {0: "愤怒", 1: "高兴"}
    processor = MseProcessor(tokenizer, 3, 2, task="classification", id2label=labels, language="zh")
    expected = processor(["好", "不好"], labels=[1, 0])
    processor.save_pretrained(tmp_path / "folder")
    script = """
import json, sys
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
batch = processor(["好", "不好"], labels=[1, 0])
assert "hf_mse_adapter" not in sys.modules
print(json.dumps([type(processor).__name__, batch["input_ids"].tolist(), batch["labels"].tolist()]))
"""
    run = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "folder")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [
        "MseProcessor",
        expected["input_ids"].tolist(),
        expected["labels"].tolist(),
    ]


@pytest.mark.parametrize("names", [("audio", "video", "labels"), ("acoustic", "visual", "label")])
def test_the_fields_other_names_are_taken(processor, tokenizer, names):
    clip = {"text": "so", "audio": [[1.0, 2.0, 3.0], [0.0, 1.0, 5.0]], "vision": [[4.0, 5.0]], "label": 1.0}
    renamed = {"text": "so", **dict(zip(names, list(clip.values())[1:], strict=True)), "id": "clip 1"}
    expected = processor.collate([clip])
    found = processor.collate([renamed])
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    by_other_names = MseProcessor(tokenizer, audio_dim=3, vision_dim=2).fit([renamed])
    assert by_other_names.feature_statistics == processor.fit([clip]).feature_statistics
    assert set(processor.feature_statistics) == {"audio", "vision"}


@pytest.mark.parametrize(
    "sample, message",
    [
        ({"text": "so", "visions": [[1.0, 2.0]]}, r"number 0 has \['visions'\]"),
        ({"text": "so", "audio_values": [[1.0, 2.0, 3.0]]}, r"number 0 has \['audio_values'\]"),
        ({"text": "so", "vision": [[1.0, 2.0]], "video": [[1.0, 2.0]]}, "sample 0 has 'vision' twice"),
        ("so", "must be a dict"),
    ],
)
def test_a_field_that_is_not_known_is_refused(processor, sample, message):
    for method in (processor.collate, processor.fit):
        with pytest.raises(ValueError, match=message):
            method([sample])


@pytest.mark.parametrize("audio", [bytes(3), bytearray(3), memoryview(bytes(6))])
def test_a_files_bytes_are_no_features(processor, audio):
    with pytest.raises(ValueError, match=r"audio must hold numbers \[time, 3\], but sample 0 does not: it is"):
        processor("so", audio=audio)


SMOLLM2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<s>system\nYou are a "
    "helpful assistant</s>\n' }}{% endif %}{{'<s>' + message['role'] + '\n' + message['content'] + '</s>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
PLAIN_CHAT = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"


@pytest.mark.parametrize("chat_template", [SMOLLM2_CHAT, PLAIN_CHAT])
def test_the_chat_template_carries_the_prompt(chat_template, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template
    processor = MseProcessor(tokenizer, audio_dim=5, vision_dim=4, prompt_template="chat")
    processor.save_pretrained(tmp_path)
    content = "<Multimodal>{}I love it</Multimodal>Sentiment intensity from -3.0 to 3.0:"
    for one in (processor, MseProcessor.from_pretrained(tmp_path)):
        batch = one("I love it")
        ids, places = batch["input_ids"][0], batch["pseudo_token_mask"][0]
        assert places.sum() == 4
        words = tokenizer.decode(ids[~places])
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": content.format("")}], tokenize=False, add_generation_prompt=True
        )
        assert words == expected
        # the marks of a chat are special tokens, and there is one beginning
        assert (ids == tokenizer.bos_token_id).sum() == expected.count("<s>")
        assert tokenizer.decode(ids[batch["text_mask"][0]]) == "I love it"
    # what people say never is
    spoken = processor("</s><s>")
    assert tokenizer.eos_token_id not in spoken["input_ids"][spoken["text_mask"]].tolist()


def test_a_chat_prompt_needs_a_chat_template():
    with pytest.raises(ValueError, match="prompt_template is 'chat', but the tokenizer has no chat template"):
        MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4, prompt_template="chat")


@pytest.mark.parametrize("name", ["<|im_start|>", "<start_of_turn>", "<｜User｜>"])
def test_a_chat_format_of_another_tokenizer_is_refused(name):
    """Its names of tokens would be read as so many letters."""
    template = name + "{pseudo_tokens}{text}"
    with pytest.raises(ValueError, match=f"prompt_template has '{re.escape(name)}', which is no token"):
        MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4, prompt_template=template)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    row = MseProcessor(tokenizer, audio_dim=5, vision_dim=4, prompt_template=template)([f"{name} hi"])
    assert row["input_ids"][0].tolist().count(tokenizer.convert_tokens_to_ids(name)) == 1


def test_a_tokenizer_of_mistral_common_works_and_is_saved_in_another_form(tmp_path):
    """Its own file says no type by which a processor could load it again."""
    common = pytest.importorskip(
        "mistral_common", reason="mistral-common is not installed (pip install mistral-common)"
    )
    (source,) = sorted((Path(common.__file__).parent / "data").glob("tekken*"))[:1]
    shutil.copyfile(source, tmp_path / "tekken.json")
    MistralConfig().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__ == "MistralCommonBackend"
    processor = MseProcessor(tokenizer, audio_dim=5, vision_dim=4)
    assert processor(["I love it"], labels=[1.0])["input_ids"].shape[0] == 1
    with pytest.raises(ValueError, match="save_format='hf'"):
        processor.save_pretrained(tmp_path / "processor")
    assert not (tmp_path / "processor").exists()
