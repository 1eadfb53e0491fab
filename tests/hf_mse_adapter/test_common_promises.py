"""What transformers' and PEFT's own test mixins promise of any model, asked of an MSE-Adapter in both its forms."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from hf_mse_adapter import MseAdapterConfig, MseConfig, MseForConditionalGeneration, MseProcessor
from tests.hf_mse_adapter.test_backbone_trial import BART, XLSTM, build
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_batch, build_tokenizer

FIELDS = {"audio_dim": 5, "vision_dim": 4, "dropout": 0.0, "scales": (2, 4, 4)}
HEADS = {
    "none": {},
    "alone": {"head": "alone"},
    "lower": {"head": "alone", "head_layers": (1,)},
    "beside": {"head": "beside", "head_layers": (1, 2)},
    "words": {"head": "alone", "head_layers": (1, 2), "fusion": "head"},
}


def adapted(kind, head="none", llm=None, **fields):
    llm = build_backbone() if llm is None else llm
    torch.manual_seed(0)
    config = MseAdapterConfig(**FIELDS, **HEADS[head], **fields)
    if kind == "peft":
        model = get_peft_model(llm, config).eval()
        adapter = model.base_model.adapter
    else:
        model = MseForConditionalGeneration.from_backbone(llm, config).eval()
        adapter = model.adapter
    # some parts begin at zero
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_for(head="none", **fields):
    batch = build_batch(**fields)
    if head != "none":
        batch["label_values"] = torch.tensor([1.0, -2.5, 0.3])
    if head == "words":
        del batch["pseudo_token_mask"]
    return batch


def llm_of(model):
    return model.language_model if isinstance(model, MseForConditionalGeneration) else model.base_model.language_model


def processor():
    return MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4)


def one_line(caught, *words):
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 350


@pytest.fixture(params=["model", "peft"])
def kind(request):
    return request.param


@pytest.mark.parametrize("head", HEADS)
def test_the_same_twice_and_from_a_copy(kind, head):
    model = adapted(kind, head)
    with torch.no_grad():
        expected = model(**batch_for(head))
        for other in (model, copy.deepcopy(model)):
            found = other(**batch_for(head))
            assert list(found) == list(expected)
            assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("head", HEADS)
def test_tuples(kind, head):
    model = adapted(kind, head)
    with torch.no_grad():
        expected = model(**batch_for(head)).to_tuple()
        found = model(**batch_for(head), return_dict=False)
        assert isinstance(found, tuple) and len(found) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        if kind == "model":
            model.config.return_dict = False
            assert isinstance(model(**batch_for(head)), tuple)


@pytest.mark.parametrize("head", HEADS)
def test_states_and_attentions_are_the_llms_own(kind, head):
    model = adapted(kind, head)
    model.set_attn_implementation("eager")
    llm, batch = llm_of(model), batch_for(head)
    if head in ("lower", "words"):
        # the prompts alone, which these read, padded on the left
        batch = {**batch_for(head, labels=None), "label_values": batch["label_values"]}
    tokens = {name: value for name, value in batch.items() if name != "label_values"}
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        prepared = (model if kind == "model" else model.base_model).prepare_inputs(**tokens)
        prepared.pop("labels", None)
        expected = llm(**prepared, **wanted)
        plain, shown = model(**batch), model(**batch, **wanted)
    for name in ("hidden_states", "attentions"):
        assert name not in plain and len(shown[name]) == len(expected[name])
        for one, other in zip(shown[name], expected[name], strict=True):
            torch.testing.assert_close(one, other)
    for name, value in plain.items():
        torch.testing.assert_close(shown[name], value, msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_states_by_the_config(head):
    model = adapted("model", head)
    expected = model(**batch_for(head), output_hidden_states=True).hidden_states
    model.config.output_hidden_states = True
    for one, other in zip(model(**batch_for(head)).hidden_states, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert "hidden_states" not in model(**batch_for(head), output_hidden_states=False)


@pytest.mark.parametrize("head", HEADS)
def test_an_llms_config_that_asks_for_states_changes_nothing(kind, head):
    model = adapted(kind, head)
    model.set_attn_implementation("eager")
    expected = model(**batch_for(head))
    llm_of(model).config.output_hidden_states = llm_of(model).config.output_attentions = True
    found = model(**batch_for(head))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    answers = (model if kind == "model" else model.base_model).predict(batch_for(head), processor().answers)
    assert len(answers) == 3


@pytest.mark.parametrize("head", HEADS)
def test_asking_for_states_leaves_nothing_on_the_llm(kind, head):
    model, counts = adapted(kind, head), []
    for _ in range(3):
        model(**batch_for(head), output_hidden_states=True)
        counts.append(sum(len(module._forward_hooks) for module in llm_of(model).modules()))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("name, fields", [("Bart", BART), ("XLSTM", XLSTM)], ids=["Bart", "xLSTM"])
def test_states_of_an_llm_that_ignores_the_mask_stand_in_their_places(name, fields):
    if name == "XLSTM":
        name = "xLSTM"
    model = adapted("model", llm=build(name, fields))
    together = batch_for(labels=None)
    with torch.no_grad():
        states = model(**together, output_hidden_states=True).hidden_states
        for row in range(3):
            length = int(together["attention_mask"][row].sum())
            alone = {
                key: value[row : row + 1, -length:]
                if value.shape[1] == together["input_ids"].shape[1]
                else value[row : row + 1]
                for key, value in together.items()
            }
            for whole, single in zip(states, model(**alone, output_hidden_states=True).hidden_states, strict=True):
                torch.testing.assert_close(whole[row, -length:], single[0], rtol=1e-3, atol=1e-4)


def test_gradients_of_hidden_states_are_kept(kind):
    model = adapted(kind)
    outputs = model(**batch_for(), output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()
    outputs.loss.backward()
    assert all(state.grad.abs().sum() > 0 for state in outputs.hidden_states)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_whatever_is_missing(kind, head):
    """So that distributed training need not search for unused parameters (ddp_find_unused_parameters)."""
    for missing in ((), ("audio",), ("vision",), ("audio", "vision")):
        model = adapted(kind, head).train()
        batch = batch_for(head)
        for modality in missing:
            del batch[f"{modality}_values"], batch[f"{modality}_attention_mask"]
        model(**batch).loss.backward()
        learning = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        assert learning and [name for name, value in learning if value.grad is None] == []


@pytest.mark.parametrize(
    "name", ["inputs_embeds", "position_ids", "logits_to_keep", "past_key_values", "use_cache", "cache_position"]
)
def test_what_only_the_adapter_can_give_is_refused_in_one_line(kind, name):
    model = adapted(kind)
    value = {"use_cache": True, "logits_to_keep": 1}.get(name, torch.zeros(3, 42, dtype=torch.long))
    with pytest.raises(ValueError, match=name) as caught:
        model(**batch_for(), **{name: value})
    one_line(caught, name)
    if name not in ("use_cache", "cache_position"):
        with pytest.raises(ValueError, match=name):
            model.generate(**batch_for(), **{name: value}, max_new_tokens=1)


def test_another_attention(kind):
    model = adapted(kind)
    expected = model(**batch_for()).loss
    model.set_attn_implementation("eager")
    assert llm_of(model).config._attn_implementation == "eager"
    torch.testing.assert_close(model(**batch_for()).loss, expected)
    model.set_attn_implementation("sdpa")
    assert llm_of(model).config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(**batch_for()).loss, expected)
    with pytest.raises(ValueError, match="nonsense"):
        model.set_attn_implementation("nonsense")


def test_embeddings_are_the_llms_and_stay_frozen(kind):
    model = adapted(kind)
    assert model.resize_token_embeddings(408).num_embeddings == 408
    # the new rows take their part of the likelihood
    expected = model(**batch_for()).loss
    model.resize_token_embeddings()
    torch.testing.assert_close(model(**batch_for()).loss, expected)
    model.set_input_embeddings(model.get_input_embeddings())
    torch.testing.assert_close(model(**batch_for()).loss, expected)
    other = torch.nn.Embedding(408, 64)
    model.set_input_embeddings(other)
    assert not other.weight.requires_grad
    assert (model(**batch_for()).loss - expected).abs() > 1e-3
    model.tie_weights()
    with pytest.raises(ValueError, match="width 32"):
        model.set_input_embeddings(torch.nn.Embedding(408, 32))


def test_checkpointing_by_the_config(tmp_path):
    config = MseConfig(**FIELDS, gradient_checkpointing=True)
    model = MseForConditionalGeneration(config, build_backbone())
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.language_model.modules())
    assert "gradient_checkpointing" not in model.config.to_dict()
    model.save_pretrained(tmp_path)
    again = MseForConditionalGeneration.from_pretrained(
        tmp_path, config=MseConfig(**FIELDS, hidden_size=64, gradient_checkpointing=True), backbone=build_backbone()
    )
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.language_model.modules())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_both_kinds_of_checkpointing_give_the_same_gradients(kind, use_reentrant):
    gradients = []
    for checkpoints in (False, True):
        model = adapted(kind).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**batch_for()).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert gradients[0]
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


def test_the_last_adapter_deleted():
    llm = build_backbone()
    tokens = {name: value for name, value in batch_for(labels=None).items() if name in ("input_ids", "attention_mask")}
    expected = llm(**tokens).logits
    model = adapted("peft", llm=llm)
    model.delete_adapter("default")
    torch.testing.assert_close(model.base_model(**batch_for(labels=None)).logits, expected)
    assert model.base_model.generate(**batch_for(labels=None), max_new_tokens=1).shape[0] == 3
    with pytest.raises(ValueError, match="'default' was deleted") as caught:
        model(**batch_for())
    one_line(caught, "add_adapter")
    with pytest.raises(ValueError, match="disabled or deleted"):
        model.base_model.predict(batch_for(), processor().answers, "head")
    model.add_adapter("other", MseAdapterConfig(**FIELDS))
    model.set_adapter("other")
    assert model(**batch_for()).loss.isfinite()
    assert model.unload() is llm


def test_an_adapter_of_the_llms_dtype_where_peft_is_told_so(tmp_path):
    def of(**options):
        return get_peft_model(build_backbone().bfloat16(), MseAdapterConfig(**FIELDS), **options)

    assert {value.dtype for value in of().base_model.adapter.parameters()} == {torch.float32}
    model = of(autocast_adapter_dtype=False)
    assert {value.dtype for value in model.base_model.adapter.parameters()} == {torch.bfloat16}
    loss = model(**batch_for()).loss
    loss.backward()
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        again = PeftModel.from_pretrained(
            build_backbone().bfloat16(), tmp_path, autocast_adapter_dtype=False, low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert {value.dtype for value in again.base_model.adapter.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(again(**batch_for()).loss, model.eval()(**batch_for()).loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_cast_as_a_whole(kind, head, dtype):
    model = adapted(kind, head)
    expected = model(**batch_for(head)).loss
    model = model.to(dtype)
    assert {value.dtype for value in model.parameters()} == {dtype}
    torch.testing.assert_close(model(**batch_for(head)).loss.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"dtype": "auto"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}],
    ids=str,
)
def test_loaded_with_options_of_the_llm(tmp_path, options):
    build_backbone().save_pretrained(tmp_path / "llm")
    model = adapted("model", "alone")
    model.config.backbone_name_or_path = str(tmp_path / "llm")
    model.save_pretrained(tmp_path / "model")
    again = MseForConditionalGeneration.from_pretrained(tmp_path / "model", **options)
    dtype = options.get("dtype")
    assert again.language_model.dtype == (dtype if isinstance(dtype, torch.dtype) else torch.float32)
    assert again.adapter.dtype == torch.float32
    torch.testing.assert_close(
        again(**batch_for("alone")).loss, model(**batch_for("alone")).loss, rtol=0.02, atol=0.02
    )


def test_errors_of_a_device_are_not_called_damaged_weights(tmp_path, monkeypatch):
    model = adapted("model")
    model.save_pretrained(tmp_path)

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: driver version mismatch")

    monkeypatch.setattr(MseForConditionalGeneration, "post_init", fail)
    with pytest.raises(RuntimeError, match="driver version"):
        MseForConditionalGeneration.from_pretrained(tmp_path, backbone=build_backbone())
