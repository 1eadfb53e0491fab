import copy
import importlib.util
import os
import subprocess
import sys
import sysconfig

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GlmConfig,
    LlamaConfig,
    Qwen2Config,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from hf_mse_adapter import (
    ModalityEncoder,
    MseAdapter,
    MseAdapterConfig,
    MseConfig,
    MseForConditionalGeneration,
    MseProcessor,
    MultiScaleFusion,
    TextGuideMixer,
    save_for_hub,
)

from .remote_language_model import write as write_remote_language_model
from .tiny_backbones import ARCHITECTURES, build_backbone, build_batch, build_tokenizer

FIELDS = {"audio_dim": 5, "vision_dim": 4, "dropout": 0.0}
EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}
# the paper's table, see ../shared/papers.md: dimensions, LSTM widths, parameters for hidden size 4096 and 2048
PAPER = {
    "MOSEI": ((74, 35), (64, 32), 2_631_692, 1_351_244),
    "SIMS-v2": ((25, 177), (64, 64), 2_680_716, 1_400_268),
    "MELD": ((64, 64), (64, 32), 2_632_844, 1_352_396),
    "CHERMA": ((1024, 2048), (32, 16), 2_842_380, 1_561_932),
}
FULL_SIZE = {
    "LLaMA2-7B": LlamaConfig(),
    "ChatGLM3-6B": GlmConfig(
        vocab_size=65024,
        hidden_size=4096,
        intermediate_size=13696,
        num_hidden_layers=28,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        attention_bias=True,
        pad_token_id=0,
    ),
    "Qwen-1.8B": Qwen2Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
    ),
}


def build_model(architecture="Llama", seed=0, backbone=None, **fields):
    torch.manual_seed(seed)
    config = MseAdapterConfig(**FIELDS | fields)
    return MseForConditionalGeneration.from_backbone(backbone or build_backbone(architecture), config).eval()


def rows_of(batch, row):
    """One row of a batch, with its padding on the left cut off."""
    start = int(batch["attention_mask"][row].argmax())
    token_fields = ("input_ids", "attention_mask", "pseudo_token_mask", "text_mask", "labels")
    return {k: v[row : row + 1, start:] if k in token_fields else v[row : row + 1] for k, v in batch.items()}


def prepared(model, batch):
    return model.prepare_inputs(**{name: value for name, value in batch.items() if name != "label_values"})


def full_logits(model, batch):
    """Labels and logits [batch, length, vocabulary], step by step and with logits everywhere."""
    inputs = prepared(model, batch)
    labels = inputs.pop("labels")
    return labels, model.language_model(**inputs).logits


# ---- the modules


@pytest.mark.parametrize("data_set", PAPER)
@pytest.mark.parametrize("llm", FULL_SIZE)
def test_trainable_parameters_are_the_papers(data_set, llm):
    (audio_dim, vision_dim), (audio_size, vision_size), at_4096, at_2048 = PAPER[data_set]
    config = MseAdapterConfig(
        audio_dim=audio_dim, vision_dim=vision_dim, audio_hidden_size=audio_size, vision_hidden_size=vision_size
    )
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(FULL_SIZE[llm]), config)
    assert model.get_nb_trainable_parameters()[0] == (at_2048 if llm == "Qwen-1.8B" else at_4096)


def test_the_encoder_reads_true_steps_only():
    encoder = ModalityEncoder(5, 7, 3, dropout=0.0)
    lengths = [1, 6, 3]
    values = torch.randn(3, 6, 5)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    packed = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
    expected = encoder.projection(encoder.lstm(packed)[1][0][0])
    torch.testing.assert_close(encoder(values, mask), expected)
    # padding on the left, and whatever stands in it
    left = torch.full_like(values, float("nan"))
    for row, length in enumerate(lengths):
        left[row, 6 - length :] = values[row, :length]
    torch.testing.assert_close(encoder(left, mask.flip(1)), expected)


def test_an_encoder_without_steps_gives_zeros():
    encoder = ModalityEncoder(5, 7, 3, dropout=0.0)
    mask = torch.tensor([[True, True], [False, False]])
    encoded = encoder(torch.randn(2, 2, 5), mask)
    assert encoded[0].abs().sum() > 0 and not encoded[1].any()
    empty = encoder(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.bool))
    assert torch.equal(empty, torch.zeros(2, 3))
    empty.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_mixer_is_the_papers_equation():
    mixer = TextGuideMixer(6, 3)
    text, audio, vision = torch.randn(2, 4, 6), torch.randn(2, 3), torch.randn(2, 3)
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    mixed = mixer(text, mask, audio, vision)
    for row in range(2):
        guide = mixer.guide(torch.stack([text[row, i] for i in range(4) if mask[row, i]]).mean(dim=0))
        torch.testing.assert_close(mixed[row], audio[row] * guide + vision[row] * guide)


def test_the_fusion_is_a_weighted_sum_of_scales():
    fusion = MultiScaleFusion(64, 8, scales=(8, 32, 16))
    assert [scale[0].out_features for scale in fusion.scales] == [8, 2, 4]
    x = torch.randn(5, 8)
    weights, bias = fusion.join.weight.flatten(), fusion.join.bias
    expected = sum(w * scale[2](F.gelu(scale[0](x))) for w, scale in zip(weights, fusion.scales, strict=True)) + bias
    torch.testing.assert_close(fusion(x), expected)
    with pytest.raises(ValueError, match="scales"):
        MultiScaleFusion(16, 8, scales=(8, 32, 16))


def test_gradients_of_the_adapter_in_float64():
    config = MseAdapterConfig(
        audio_dim=3, vision_dim=2, audio_hidden_size=3, vision_hidden_size=2, mixer_dim=4, scales=(4, 2), dropout=0.0
    )
    adapter = MseAdapter(config, hidden_size=8).double()
    text_mask = torch.tensor([[True, True, False], [False, True, True]])
    audio_mask = torch.tensor([[True, True, True], [False, False, False]])
    vision_mask = torch.tensor([[True, False], [True, True]])
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 8), (2, 3, 3), (2, 2, 2))
    ]
    names, parameters = zip(*adapter.named_parameters(), strict=True)

    def run(text, audio, vision, *values):
        arguments = (text, text_mask, audio, audio_mask, vision, vision_mask)
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), arguments)

    assert torch.autograd.gradcheck(run, (*inputs, *parameters))


# ---- alone, in a batch, padded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sample_alone_equals_the_sample_in_any_batch(architecture):
    model = build_model(architecture, head="beside")
    left, right = build_batch(padding_side="left"), build_batch(padding_side="right")
    more = {
        k: F.pad(v, (9, 0), value=-100 if k == "labels" else 0) if v.ndim == 2 and "a_" not in k else v
        for k, v in left.items()
    }
    for modality in ("audio", "vision"):
        more[f"{modality}_values"] = F.pad(left[f"{modality}_values"], (0, 0, 0, 11), value=3.0)
        more[f"{modality}_attention_mask"] = F.pad(left[f"{modality}_attention_mask"], (0, 11))
    for row in range(3):
        alone = rows_of(left, row)
        labels, logits = full_logits(model, alone)
        expected = logits[:, :-1][labels[:, 1:] != -100]
        head = model(**alone).head_output[0]
        for batch in (left, right, more):
            labels, logits = full_logits(model, batch)
            ours = logits[row, :-1][labels[row, 1:] != -100]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(**batch).head_output[row], head, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_alone_equals_generation_in_any_batch(architecture):
    model = build_model(architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    left, right = build_batch(padding_side="left"), build_batch(padding_side="right")
    together = model.generate(**left, **options)
    assert torch.equal(model.generate(**right, **options), together)
    for row in range(3):
        assert torch.equal(model.generate(**rows_of(left, row), **options)[0], together[row])


def test_what_is_missing_drops_out():
    model = build_model()
    batch = build_batch()

    def without(how):
        changed = {k: v.clone() for k, v in batch.items()}
        if how == "mask":
            changed["audio_attention_mask"].zero_()
        elif how == "masked nonsense":
            changed["audio_attention_mask"].zero_()
            changed["audio_values"].fill_(float("nan"))
        elif how == "no steps":
            changed["audio_values"] = changed["audio_values"][:, :0]
            changed["audio_attention_mask"] = changed["audio_attention_mask"][:, :0]
        else:
            del changed["audio_values"], changed["audio_attention_mask"]
        return model(**changed).loss

    losses = [without(how) for how in ("mask", "masked nonsense", "no steps", "nothing given")]
    assert all(torch.equal(losses[0], other) for other in losses)
    assert not torch.equal(losses[0], model(**batch).loss)
    text_only = {k: v for k, v in batch.items() if "audio" not in k and "vision" not in k}
    assert model(**text_only).loss.isfinite()
    assert model(**build_batch(texts=("", "no"), labels=(1.0, 0.0))).loss.isfinite()
    # one sample's missing vision is its own affair
    changed = {k: v.clone() for k, v in batch.items()}
    changed["vision_attention_mask"][1] = 0
    embeds, other = prepared(model, batch)["inputs_embeds"], prepared(model, changed)["inputs_embeds"]
    assert [torch.equal(embeds[row], other[row]) for row in range(3)] == [True, False, True]


def test_the_text_alone_guides():
    model = build_model()
    batch = build_batch()
    places = batch["pseudo_token_mask"]
    pseudo_tokens = prepared(model, batch)["inputs_embeds"][places]
    changed = batch["input_ids"].masked_fill(~batch["text_mask"] & ~places, 7)
    torch.testing.assert_close(prepared(model, batch | {"input_ids": changed})["inputs_embeds"][places], pseudo_tokens)
    changed = batch["input_ids"].masked_fill(batch["text_mask"], 7)
    assert not torch.allclose(prepared(model, batch | {"input_ids": changed})["inputs_embeds"][places], pseudo_tokens)


def test_without_kept_places_the_pseudo_tokens_stand_in_front():
    model = build_model()
    batch = build_batch(padding_side="right")
    bare = {
        k: v[:, 5:] if k in ("input_ids", "attention_mask", "text_mask", "labels") else v for k, v in batch.items()
    }
    del bare["pseudo_token_mask"]
    front = {
        k: F.pad(bare[k], (4, 0), value=-100 if k == "labels" else k == "attention_mask")
        for k in bare
        if k not in batch or bare[k] is not batch[k]
    }
    front["pseudo_token_mask"] = torch.zeros_like(front["input_ids"], dtype=torch.bool)
    front["pseudo_token_mask"][:, :4] = True
    ours, expected = model(**bare), model(**batch | front)
    torch.testing.assert_close(ours.loss, expected.loss)
    assert torch.equal(ours.logit_positions, expected.logit_positions)
    del bare["text_mask"], bare["attention_mask"], bare["labels"]
    assert model(**bare).logits.isfinite().all()


# ---- loss and head


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_loss_is_the_cross_entropy_of_the_label_tokens(padding_side):
    model = build_model("Qwen2")
    batch = build_batch(padding_side=padding_side)
    output = model(**batch)
    labels, logits = full_logits(model, batch)
    terms = [
        -logits[row, t - 1].log_softmax(dim=-1)[labels[row, t]]
        for row in range(3)
        for t in range(1, labels.shape[1])
        if labels[row, t] != -100
    ]
    # every answer has a sign, digits and point, and the end token counts too
    assert len(terms) == int((batch["labels"] != -100).sum()) == sum(map(len, ("1.0", "-2.5", "0.3"))) + 3
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())
    torch.testing.assert_close(output.logits, logits[:, output.logit_positions[0]])
    if padding_side == "left":
        assert output.logits.shape[1] == 5, "logits are computed only where a label is"


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("head", ["none", "alone", "beside"])
def test_micro_batches_are_one_batch_though_their_labels_have_unlike_token_counts(head, task):
    fields, labels = {}, (1.0, -2.5, 0.3)
    if task == "classification":
        fields, labels = {"task": task, "id2label": {index: f"class {index}" for index in range(11)}}, (3, 10, 2)
    model = build_model(head=head, **fields)
    batch = build_batch(labels=labels, **fields)
    counts = (batch["labels"] != -100).sum(dim=1)
    assert len(set(counts.tolist())) > 1
    whole = model(**batch).loss
    gradients = torch.autograd.grad(whole, list(model.adapter.parameters()))
    shares = {"num_items_in_batch": counts.sum()} | ({} if head == "none" else {"num_samples_in_batch": 3})
    parts = sum(model(**rows_of(batch, row), **shares).loss for row in range(3))
    torch.testing.assert_close(parts, whole)
    for one, two in zip(torch.autograd.grad(parts, list(model.adapter.parameters())), gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("head", ["alone", "beside"])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_the_head_sits_on_the_prompts_last_hidden_state(architecture, head, task):
    fields = {"task": task, "id2label": EMOTIONS} if task == "classification" else {}
    labels = (0, 2, 1) if task == "classification" else (1.0, -2.5, 0.3)
    model = build_model(architecture, head=head, **fields)
    batch = build_batch(labels=labels, padding_side="right", **fields)
    output = model(**batch)

    inputs = prepared(model, batch)
    token_labels = inputs.pop("labels")
    hidden = model.language_model(**inputs, output_hidden_states=True).hidden_states[-1]
    ends = [int((token_labels[row] != -100).nonzero()[0]) - 1 for row in range(3)]
    expected = model.adapter.head[1](hidden[range(3), ends])
    torch.testing.assert_close(output.head_output, expected)
    values = torch.tensor(labels)
    loss = F.cross_entropy(expected, values) if task == "classification" else (expected[:, 0] - values).abs().mean()
    if head == "beside":
        plain = build_model(architecture, backbone=model.language_model, **fields)
        plain.adapter.load_state_dict(model.adapter.state_dict(), strict=False)
        loss = loss + plain(**batch).loss
    torch.testing.assert_close(output.loss, loss)
    # without labels the prompt's end is where the text ends
    prompts = build_batch(labels=None, padding_side="left", **fields)
    torch.testing.assert_close(model(**prompts).head_output, expected, atol=1e-5, rtol=1e-5)

    processor = MseProcessor(build_tokenizer(), 5, 4, task=task, id2label=fields.get("id2label"))
    answers = model.predict(batch, processor.answers)
    if task == "regression":
        assert [answer.value for answer in answers] == pytest.approx(expected[:, 0].clamp(-3, 3).tolist(), abs=1e-5)
    else:
        assert [answer.value for answer in answers] == expected.argmax(dim=-1).tolist()
        assert all(sum(answer.probabilities) == pytest.approx(1) for answer in answers)


def test_a_head_that_is_not_there_cannot_answer():
    with pytest.raises(ValueError, match="head"):
        build_model().predict(build_batch(), None, "head")


def test_bad_batches_are_refused_by_name():
    model, batch = build_model(), build_batch()
    bad = {
        "input_ids": torch.zeros(0, 3, dtype=torch.long),
        "attention_mask": torch.ones(3, 2),
        "audio_values": torch.zeros(3, 7, 9),
        "audio_attention_mask": torch.ones(3, 8),
        "vision_values": torch.full_like(batch["vision_values"], float("nan")),
        "pseudo_token_mask": torch.zeros_like(batch["input_ids"]),
        "labels": torch.full_like(batch["labels"], -100),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            model(**batch | {name: value})
    with pytest.raises(ValueError, match="unknown arguments audio, vision_value; expected input_ids"):
        model(**batch, audio=batch["audio_values"], vision_value=batch["vision_values"])


def test_more_tokens_than_positions_are_refused():
    tokens = torch.full((2, 600), 5)
    mask = torch.ones_like(tokens)
    with pytest.raises(ValueError, match="a prompt has 604 tokens; expected at most 512"):
        build_model("OPT")(input_ids=tokens, attention_mask=mask)
    # padding takes no position, and Llama computes its positions
    mask[:, :300] = 0
    assert build_model("OPT")(input_ids=tokens, attention_mask=mask).logits.isfinite().all()
    assert build_model("Llama")(input_ids=tokens).logits.isfinite().all()


# ---- training


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Gemma"])
def test_training_reaches_the_adapter_and_nothing_else(architecture):
    llm = build_backbone(architecture)
    before = copy.deepcopy(llm.state_dict())
    model = build_model(architecture, backbone=llm).train()
    batch = build_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter.parameters())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(before[name], value) for name, value in llm.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in llm.parameters())


def test_the_llms_dropout_stays_off_in_training():
    model = build_model("OPT", backbone=build_backbone("OPT", dropout=0.5)).train()
    batch = build_batch()
    assert model.adapter.training
    loss = model(**batch).loss
    assert torch.equal(model(**batch).loss, loss)
    assert torch.equal(model.eval()(**batch).loss, loss)


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients():
    model, batch = build_model().train(), build_batch()
    calls = []
    model.language_model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        calls.clear()
        model.zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.adapter.parameters()], len(calls)

    plain, once = gradients()
    model.activation_checkpointing_enable()
    recomputed, twice = gradients()
    assert (once, twice) == (1, 2)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)
    model.activation_checkpointing_disable()
    assert gradients()[1] == 1


def test_autocast_leaves_the_adapter_in_float32():
    model, batch = build_model(), build_batch()
    expected = prepared(model, batch)["inputs_embeds"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepared(model, batch)["inputs_embeds"], expected)
        assert model(**batch).loss.dtype == torch.float32


def test_trainer_saves_and_resumes(tmp_path):
    batch = build_batch()
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)] * 4

    def train(folder, resume=None):
        model = build_model(head="beside", dropout=0.3)
        arguments = TrainingArguments(
            str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            save_steps=2,
            learning_rate=1e-2,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model

    whole = train(tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert saved.keys() == {f"adapter.{name}" for name in whole.adapter.state_dict()}
    assert not all(torch.equal(saved[name], value) for name, value in whole.state_dict().items())
    resumed = train(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrap", [False, True], ids=["model", "peft"])
def test_a_plain_trainers_metrics_get_logits_that_can_be_read(tmp_path, wrap):
    """From what `compute_metrics` is given, the loss of the label tokens follows, however long the batches were."""
    config = MseAdapterConfig(**FIELDS | {"head": "beside"})
    llm = build_backbone("Qwen2")
    model = get_peft_model(llm, config) if wrap else MseForConditionalGeneration.from_backbone(llm, config)
    processor = MseProcessor.from_config(config, build_tokenizer())
    clips = [{"text": "so " * (1 + 3 * i), "label": value} for i, value in enumerate((1.0, -2.5, 0.3, -1.0))]

    def compute_metrics(prediction):
        logits, positions, head_output = map(torch.tensor, prediction.predictions)
        labels = torch.tensor(prediction.label_ids if wrap else prediction.label_ids[0])
        assert head_output.shape == (4, 1)
        losses = []
        for row in range(4):
            there = positions[row] != -100
            scores, targets = logits[row, there], labels[row, positions[row, there] + 1]
            losses.append(F.cross_entropy(scores, targets, ignore_index=-100))
        return {"token_loss": torch.stack(losses).mean().item()}

    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, report_to=[], use_cpu=True, per_device_eval_batch_size=1,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, eval_dataset=clips, data_collator=processor.collate, compute_metrics=compute_metrics
    )
    losses = [model.eval()(**processor.collate([clip])) for clip in clips]
    tokens = [
        output.loss - abs(output.head_output[0, 0] - clip["label"]) for output, clip in zip(losses, clips, strict=True)
    ]
    assert trainer.evaluate()["eval_token_loss"] == pytest.approx(torch.stack(tokens).mean().item(), abs=1e-4)


@pytest.mark.parametrize("head", ["none", "alone"])
@pytest.mark.parametrize("wrap", [False, True], ids=["model", "peft"])
def test_transformers_label_smoothing_is_refused_in_one_line(tmp_path, wrap, head):
    config = MseAdapterConfig(**FIELDS | {"head": head})
    llm = build_backbone("Qwen2")
    model = get_peft_model(llm, config) if wrap else MseForConditionalGeneration.from_backbone(llm, config)
    processor = MseProcessor.from_config(config, build_tokenizer())
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, label_smoothing_factor=0.1, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    clips = [{"text": "so", "label": 1.0}] * 2
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        Trainer(model, arguments, train_dataset=clips, data_collator=processor.collate).train()


# ---- saving and loading


def test_the_folder_holds_the_adapter_and_names_the_llm(tmp_path):
    build_backbone("Qwen2").save_pretrained(tmp_path / "llm")
    batch = build_batch()
    model = build_model(backbone=AutoModelForCausalLM.from_pretrained(tmp_path / "llm"))
    model.save_pretrained(tmp_path / "model")
    names = {
        file for file in os.listdir(tmp_path / "model") if not file.endswith(".py")
    }  # code, once that is asked for
    assert names == {"config.json", "model.safetensors"}
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(value.numel() for value in saved.values()) == sum(p.numel() for p in model.adapter.parameters())

    loaded = MseForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert not loaded.training and not any(p.requires_grad for p in loaded.language_model.parameters())
    half = MseForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, device_map="cpu")
    assert half.language_model.dtype == torch.bfloat16 and half.adapter.dtype == torch.float32
    assert half(**batch).loss.isfinite()
    half.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert saved.keys() == again.keys() and all(torch.equal(saved[name], again[name]) for name in saved)


def test_a_state_dict_is_the_adapters(tmp_path):
    one, other = build_model(seed=1), build_model(seed=2)
    assert all(name.startswith("adapter.") for name in one.state_dict())
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(**build_batch()).loss, one(**build_batch()).loss)


def test_several_adapters_share_one_llm(tmp_path):
    batch, llm = build_batch(), build_backbone()
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    bare = llm(**inputs).logits
    for seed in (1, 2):
        build_model(seed=seed).save_pretrained(tmp_path / str(seed))
    expected = [build_model(seed=seed)(**batch).loss for seed in (1, 2)]
    models = [MseForConditionalGeneration.from_pretrained(tmp_path / str(seed), backbone=llm) for seed in (1, 2)]
    assert models[0].language_model is models[1].language_model is llm
    for _ in range(2):
        assert [torch.equal(model(**batch).loss, loss) for model, loss in zip(models, expected, strict=True)] == [
            True
        ] * 2
    assert torch.equal(llm(**inputs).logits, bare)


def test_loading_without_an_llm_or_with_a_wrong_one(tmp_path):
    build_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backbone"):
        MseForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="width 32"):
        MseForConditionalGeneration.from_pretrained(tmp_path, backbone=build_backbone(hidden_size=32))
    with pytest.raises(OSError):
        MseForConditionalGeneration.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no LLM"):
        MseForConditionalGeneration(MseConfig(**FIELDS, hidden_size=64))(**build_batch())


def remote_llm(folder, flaw=None):
    folder = write_remote_language_model(folder, flaw)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_an_llm_of_remote_code(tmp_path):
    """Its embeddings alone are enough: to train, to answer in every way, to be left alone, to be loaded again."""
    llm, batch = remote_llm(tmp_path / "llm"), build_batch(padding_side="right")
    prompts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    bare = llm(**prompts).logits
    model = build_model(backbone=llm, head="beside")
    before = copy.deepcopy(model.adapter.state_dict())
    model.train()
    model(**batch).loss.backward()
    torch.optim.SGD(model.adapter.parameters(), lr=0.1).step()
    model.eval()
    assert not torch.equal(before["head.1.weight"], model.adapter.state_dict()["head.1.weight"])
    assert all(parameter.grad is None for parameter in llm.parameters())
    assert torch.equal(llm(**prompts).logits, bare)

    answers = MseProcessor(build_tokenizer(), 5, 4).answers
    for method in ("head", "expected", "likeliest", "constrained"):
        together = [prediction.value for prediction in model.predict(batch, answers, method)]
        alone = [model.predict(rows_of(batch, row), answers, method)[0].value for row in range(3)]
        assert together == pytest.approx(alone, abs=1e-5)
    assert model.generate(**batch, max_new_tokens=4).shape == (3, 4)

    tuned = get_peft_model(llm, MseAdapterConfig(**FIELDS))
    with tuned.disable_adapter():
        assert torch.equal(tuned(**prompts).logits, bare)
    assert not torch.equal(tuned(**batch).loss, model(**batch).loss)
    tuned.unload()

    for include_backbone in (False, True):
        folder = tmp_path / f"published_{include_backbone}"
        save_for_hub(model, MseProcessor(build_tokenizer(), 5, 4), folder, include_backbone=include_backbone)
        loaded = MseForConditionalGeneration.from_pretrained(folder, trust_remote_code=True)
        assert type(loaded.language_model).__name__ == "LittleForCausalLM"
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("flaw, message", [
    ("code", "get_head_mask"),
    ("layout", "RuntimeError"),
    ("scale", "mean something else"),
])  # fmt: skip
def test_remote_code_that_does_not_run_is_named(tmp_path, flaw, message):
    llm = remote_llm(tmp_path / "llm", flaw)
    for attach in (MseForConditionalGeneration.from_backbone, get_peft_model):
        with pytest.raises(ValueError, match=f"LittleForCausalLM.*{message}"):
            attach(llm, MseAdapterConfig(**FIELDS))


def test_remote_code_that_cannot_generate_still_scores(tmp_path):
    model = build_model(backbone=remote_llm(tmp_path / "llm", "cache"))
    batch, answers = build_batch(), MseProcessor(build_tokenizer(), 5, 4).answers
    assert len(model.predict(batch, answers, "expected")) == 3
    with pytest.raises(ValueError, match=r"Little.* brings code .*transformers 5.*(subscriptable|past_key_values)"):
        model.predict(batch, answers, "greedy")
    with pytest.raises(ValueError, match="head is 'alone', but LittleForCausalLM shows no hidden states"):
        build_model(backbone=model.language_model, head="alone")(**batch)


def test_remote_code_that_cannot_be_loaded_is_named(tmp_path):
    model = build_model(backbone=remote_llm(tmp_path / "llm"))
    model.config.backbone_name_or_path = str(tmp_path / "llm")
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "llm" / "config.json"
    config.write_text(config.read_text().replace('"flaw": null', '"flaw": "building"'))
    with pytest.raises(ValueError, match=r"llm brings code .*max_length"):
        MseForConditionalGeneration.from_pretrained(tmp_path / "model", trust_remote_code=True)


def test_auto_model_passes_on_what_the_llm_needs(tmp_path):
    build_backbone().save_pretrained(tmp_path / "model" / "llm")
    model = build_model()
    model.config.backbone_name_or_path = "./llm"
    model.save_pretrained(tmp_path / "model")
    for name in ("dtype", "torch_dtype"):
        loaded = MseForConditionalGeneration.from_pretrained(tmp_path / "model", **{name: torch.bfloat16})
        assert loaded.language_model.dtype == torch.bfloat16 and loaded.adapter.dtype == torch.float32
    loaded = AutoModel.from_pretrained(tmp_path / "model", dtype="bfloat16", attn_implementation="eager")
    assert loaded.language_model.dtype == torch.bfloat16 and loaded.adapter.dtype == torch.float32
    assert loaded.language_model.config._attn_implementation == "eager"
    again = MseForConditionalGeneration.from_pretrained(tmp_path / "model", config=model.config)
    assert again.language_model.config._attn_implementation == "sdpa"
    llm = build_backbone()
    given = AutoModel.from_pretrained(tmp_path / "model", backbone=llm)
    assert given.language_model is llm
    assert torch.equal(given(**build_batch()).loss, model(**build_batch()).loss)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_llm(tmp_path, bits):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    build_backbone("Llama", intermediate_size=128).to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    model = build_model(backbone=AutoModelForCausalLM.from_pretrained(tmp_path / "llm"))
    model.save_pretrained(tmp_path / "model")
    quantization = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    model = MseForConditionalGeneration.from_pretrained(tmp_path / "model", quantization_config=quantization)
    assert model.language_model.is_quantized and model.adapter.dtype == torch.float32
    batch = build_batch()
    model.train()
    output = model(**batch)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.adapter.parameters())
    assert model.generate(**batch, max_new_tokens=2).shape == (3, 2)
    model.save_pretrained(tmp_path / "again")
    assert all(name.startswith("adapter.") for name in load_file(tmp_path / "again" / "model.safetensors"))


def test_a_published_folder_and_a_peft_folder_load_where_this_package_is_not(tmp_path):
    processor = MseProcessor(build_tokenizer(), 5, 4)
    model = build_model("Qwen2")
    save_for_hub(model, processor, tmp_path / "published")
    expected = model.predict(processor(["I love it"], audio=[torch.ones(3, 5)]), processor.answers)[0].value
    code = f"""
import importlib.util, sys
sys.path.append({sysconfig.get_path("purelib")!r})
assert importlib.util.find_spec("hf_mse_adapter") is None
import numpy as np
from transformers import AutoModel, AutoProcessor, pipeline
folder = {str(tmp_path / "published")!r}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
batch = processor(["I love it"], audio=[np.ones((3, 5))])
print(model.predict(batch, processor.answers)[0].value)
pipe = pipeline("multimodal-sentiment", model=folder, trust_remote_code=True)
print(pipe({{"text": "I love it", "audio": np.ones((3, 5))}})["value"])
model.save_as_peft({str(tmp_path / "peft")!r})
model = type(model).from_pretrained({str(tmp_path / "peft")!r}, backbone=model.language_model)
print(model.predict(batch, processor.answers)[0].value)
"""
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # -S: without the site packages' .pth files, so that the package's own installation is out of sight
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert [float(line) for line in ran.stdout.split()] == pytest.approx([expected] * 3, abs=1e-5)


def test_an_llm_that_takes_no_embeddings_is_refused():
    backbone = build_backbone()
    backbone.forward = lambda input_ids, attention_mask=None: None
    with pytest.raises(ValueError, match="expected one that runs by inputs_embeds"):
        MseForConditionalGeneration.from_backbone(backbone, MseAdapterConfig(audio_dim=5, vision_dim=4))


def test_an_llm_that_is_no_causal_one_is_refused():
    config = build_backbone().config
    headless = AutoModel.from_config(config)
    two_sided = T5ForConditionalGeneration(T5Config(d_model=64, d_kv=16, d_ff=96, num_layers=1, vocab_size=400))
    for llm in (headless, two_sided):
        for attach in (MseForConditionalGeneration.from_backbone, get_peft_model):
            with pytest.raises(ValueError, match=f"{type(llm).__name__}; expected a causal one"):
                attach(llm, MseAdapterConfig(**FIELDS))


def rewrite_weights(folder, change):
    file = next(folder.glob("*model.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", ["save_pretrained", "save_as_peft"])
def test_weights_that_are_missing_or_damaged_are_named(tmp_path, layout):
    def load():
        return MseForConditionalGeneration.from_pretrained(tmp_path, backbone=model.language_model)

    model = build_model()
    getattr(model, layout)(tmp_path)
    load()
    name = next(name for name in load_file(next(tmp_path.glob("*.safetensors"))) if name.endswith("join.bias"))
    rewrite_weights(tmp_path, lambda weights: weights.update({name: torch.zeros(7)}))
    with pytest.raises(ValueError, match="not those of its config"):
        load()
    rewrite_weights(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=r"join\.bias|lack"):
        load()
    next(tmp_path.glob("*.safetensors")).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="damaged"):
        load()


def test_an_llm_of_the_working_directory_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_backbone().save_pretrained("llm")
    for name in ("llm", "./llm"):
        llm = AutoModelForCausalLM.from_pretrained(name)
        MseForConditionalGeneration.from_backbone(llm, MseAdapterConfig(**FIELDS)).save_pretrained(tmp_path / "model")
        get_peft_model(llm, MseAdapterConfig(**FIELDS)).save_pretrained(tmp_path / "peft")
        assert MseForConditionalGeneration.from_pretrained("peft").config.backbone_name_or_path == str(
            tmp_path / "llm"
        )
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        MseForConditionalGeneration.from_pretrained("../model")
        monkeypatch.chdir(tmp_path)


def test_a_folder_of_another_model_is_refused_and_a_new_head_is_not(tmp_path):
    llm = build_backbone()
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="type 'llama'; expected an MSE-Adapter"):
        MseForConditionalGeneration.from_pretrained(tmp_path / "llm")
    build_model().save_pretrained(tmp_path / "model")
    loaded = MseForConditionalGeneration.from_pretrained(tmp_path / "model", backbone=llm, head="alone")
    assert loaded(**build_batch()).head_output.shape == (3, 1)


def test_an_llm_may_lie_on_disk(tmp_path):
    build_backbone().save_pretrained(tmp_path / "llm")
    model = build_model(backbone=AutoModelForCausalLM.from_pretrained(tmp_path / "llm"))
    model.save_pretrained(tmp_path / "model")
    for on_disk in ("model.layers", "model.embed_tokens"):
        parts = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
        loaded = MseForConditionalGeneration.from_pretrained(
            tmp_path / "model",
            device_map={part: "disk" if part == on_disk else "cpu" for part in parts},
            backbone_options={"offload_folder": str(tmp_path / "offloaded")},
        )
        assert torch.equal(loaded(**build_batch()).loss, model(**build_batch()).loss)
        answers = MseProcessor(build_tokenizer(), 5, 4).answers
        scores = (answers.score_candidates(one, build_batch()) for one in (loaded, model))
        torch.testing.assert_close(*scores)


def test_the_llms_commit_is_recorded():
    backbone = build_backbone()
    backbone.config.name_or_path, backbone.config._commit_hash = "some/llm", "c0ffee"
    model = MseForConditionalGeneration.from_backbone(backbone, MseAdapterConfig(audio_dim=5, vision_dim=4))
    assert model.config.backbone_revision == "c0ffee"
