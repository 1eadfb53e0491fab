"""What an adapter's file and an LLM of other makes may do to each other: nothing that nobody sees."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GgufConfig, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor, save_for_hub

from .tiny_backbones import build_backbone, build_tokenizer

CONFIG = MseAdapterConfig(audio_dim=5, vision_dim=4, label_step=0.5, dropout=0.0)
CLIPS = [{"text": "no"}, {"text": "it is great fun and what a film, I really love it", "audio": torch.ones(3, 5)}]


def processor(tokenizer=None, config=CONFIG):
    return MseProcessor.from_config(config, tokenizer or build_tokenizer())


def values(model, clips=CLIPS, method=None, reader=None):
    reader = reader or processor()
    return [prediction.value for prediction in model.predict(reader.collate(clips), reader.answers, method)]


@pytest.fixture
def llm_folder(tmp_path):
    build_backbone().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_disabled_means_the_llm_alone_in_every_method():
    llm, reader = build_backbone(), processor(config=copy.deepcopy(CONFIG))
    model = get_peft_model(llm, copy.deepcopy(CONFIG)).eval()
    batch = reader.collate(CLIPS)
    with model.disable_adapter():
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            # every candidate by itself, through the LLM's own forward
            scores = []
            for ids in reader.answers.token_ids:
                added = torch.tensor(ids).expand(2, -1)
                whole = torch.cat([tokens["input_ids"], added], 1)
                mask = torch.cat([tokens["attention_mask"], torch.ones_like(added)], 1)
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                logits = model(input_ids=whole, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
                steps = logits[:, -len(ids) - 1 : -1].gather(-1, added[..., None])[..., 0]
                scores.append(steps.sum(1))
        expected = torch.stack(scores, 1).double().softmax(1) @ torch.tensor(reader.answers.candidates).double()
        assert values(model, reader=reader) == pytest.approx(expected.tolist(), abs=1e-4)
        written = model.generate(**tokens, max_new_tokens=reader.answers.max_new_tokens, do_sample=False)
        greedy = reader.answers.parse_tokens(written[:, batch["input_ids"].shape[1] :])
        answered = model.predict(batch, reader.answers, "greedy")
        assert [one.text for one in answered] == [one.text for one in greedy]
        assert None not in values(model, method="constrained")
    assert values(model) != pytest.approx(expected.tolist(), abs=1e-3)


def test_a_disabled_adapter_has_no_head():
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, dropout=0.0, head="alone")
    model, reader = get_peft_model(build_backbone(), config).eval(), processor(config=config)
    with model.disable_adapter():
        assert values(model, reader=reader) == values(model, method="expected", reader=reader)
        with pytest.raises(ValueError, match="method is 'head', but the adapter, whose head it is, is disabled"):
            values(model, method="head", reader=reader)


@pytest.mark.parametrize("head", [{}, {"head": "alone"}, {"head": "alone", "head_layers": (1, 2)}])
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_an_llm_with_lora_is_read_alone_as_in_a_batch(kind, head):
    if kind == "GPT2":
        fields = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
        llm, targets = GPT2LMHeadModel(GPT2Config(**fields)).eval(), {"target_modules": ["c_attn"]}
        targets["fan_in_fan_out"] = True
    else:
        llm, targets = build_backbone(), {"target_modules": ["q_proj", "v_proj"]}
    plain = copy.deepcopy(llm)
    lora = get_peft_model(llm, LoraConfig(**targets, init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, label_step=0.5, dropout=0.0, **head)
    torch.manual_seed(1)
    model = MseForConditionalGeneration.from_backbone(lora, config).eval()
    reader = processor(config=config)
    alone = [values(model, [clip], reader=reader)[0] for clip in CLIPS]
    assert values(model, reader=reader) == pytest.approx(alone, abs=1e-4)
    torch.manual_seed(1)
    without = MseForConditionalGeneration.from_backbone(plain, config).eval()
    assert values(without, reader=reader) != pytest.approx(alone, abs=1e-3)


def test_prompt_learning_is_refused():
    prefix = get_peft_model(build_backbone(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="with PrefixTuningConfig, whose virtual tokens"):
        MseForConditionalGeneration.from_backbone(prefix, CONFIG)


def test_a_file_that_would_change_the_llm_is_refused(llm_folder, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llm_folder), copy.deepcopy(CONFIG))
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    own = model.base_model.model.model.layers[0].mlp.up_proj.weight.detach()
    name = "base_model.model.model.layers.0.mlp.up_proj.weight"
    # the LLM's own weights change nothing
    save_file(weights | {name: own.clone()}, path)
    assert values(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval())
    save_file(weights | {name: own + 1e-3}, path)
    for load in (AutoPeftModelForCausalLM, MseForConditionalGeneration):
        with pytest.raises(ValueError, match=r"up_proj.weight, a weight of (the|an) LLM that"):
            load.from_pretrained(tmp_path / "adapter")


def test_no_row_of_another_weight_may_differ(tmp_path):
    """Rows that were added are of the embeddings alone, also where another weight has more rows than these."""
    build_backbone(vocab_size=300, intermediate_size=512).save_pretrained(tmp_path / "llm")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "llm"), copy.deepcopy(CONFIG))
    model.save_pretrained(tmp_path / "adapter")
    changed = model.base_model.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    changed[-1] += 1e-3
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.layers.0.mlp.up_proj.weight": changed}, path)
    for load in (AutoPeftModelForCausalLM, MseForConditionalGeneration):
        with pytest.raises(ValueError, match=r"up_proj.weight, a weight of (the|an) LLM that"):
            load.from_pretrained(tmp_path / "adapter")


def test_a_resized_llm_comes_back_with_its_rows(llm_folder, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    llm = AutoModelForCausalLM.from_pretrained(llm_folder)
    llm.resize_token_embeddings(len(tokenizer) + 100)
    model = get_peft_model(llm, copy.deepcopy(CONFIG)).eval()
    reader = processor(tokenizer)
    model.save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="changed or resized after it was loaded"):
        MseForConditionalGeneration.from_pretrained(tmp_path)
    expected = values(model, reader=reader)
    again = MseForConditionalGeneration.from_pretrained(tmp_path, backbone=model.unload())
    assert values(again, reader=reader) == pytest.approx(expected, abs=1e-6)


def test_resizing_after_wrapping(llm_folder):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llm_folder), copy.deepcopy(CONFIG)).eval()
    expected = values(model)
    model.resize_token_embeddings(410)
    assert model.get_base_model().config.vocab_size == 410
    # ten more tokens that might have been written take some of the likelihood
    assert values(model) == pytest.approx(expected, abs=2e-3)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "mse_adapter" not in name)
    whole = MseForConditionalGeneration.from_backbone(AutoModelForCausalLM.from_pretrained(llm_folder), CONFIG)
    whole.resize_token_embeddings(410)
    assert whole.get_input_embeddings().weight.shape[0] == 410
    assert not any(parameter.requires_grad for parameter in whole.language_model.parameters())


def test_a_token_without_a_row():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    llm = build_backbone(vocab_size=len(tokenizer) - 1)
    model = get_peft_model(llm, copy.deepcopy(CONFIG)).eval()
    assert values(model, reader=processor(tokenizer)) == pytest.approx(
        [values(model, [clip], reader=processor(tokenizer))[0] for clip in CLIPS], abs=1e-4
    )
    batch = processor(tokenizer).collate(CLIPS)
    batch["input_ids"][0, -1] = len(tokenizer) + 5
    with pytest.raises(ValueError, match=r"input_ids holds the token \d+; expected tokens from 0 to"):
        model(**batch)


def test_what_cannot_be_merged_cannot_be_unmerged():
    with pytest.raises(ValueError, match="never merged"):
        get_peft_model(build_backbone(), copy.deepcopy(CONFIG)).unmerge_adapter()


def test_an_llm_that_is_no_longer_what_its_name_gives(llm_folder, tmp_path):
    """Reloaded by its name, a merged LoRA would be gone and every answer another."""
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llm_folder),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    merged = copy.deepcopy(lora).merge_and_unload()
    resized = AutoModelForCausalLM.from_pretrained(llm_folder)
    resized.resize_token_embeddings(410)
    for llm in (lora.eval(), merged.eval(), resized.eval()):
        model = MseForConditionalGeneration.from_backbone(llm, CONFIG).eval()
        assert model.config.backbone_name_or_path is None
        model.save_pretrained(tmp_path / "unnamed")
        with pytest.raises(ValueError, match=r"backbone_name_or_path in the config of .* is None; give backbone="):
            MseForConditionalGeneration.from_pretrained(tmp_path / "unnamed")
    model = MseForConditionalGeneration.from_backbone(merged, CONFIG).eval()
    save_for_hub(model, processor(), tmp_path / "whole")
    again = MseForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert values(again) == pytest.approx(values(model), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_llm_that_is_what_its_name_gives_keeps_it(llm_folder, dtype):
    llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=dtype)
    assert MseForConditionalGeneration.from_backbone(llm, CONFIG).config.backbone_name_or_path == str(llm_folder)
    assert MseForConditionalGeneration.from_backbone(llm.float(), CONFIG).config.backbone_name_or_path


def test_an_llm_from_a_gguf_file_is_no_quantized_one(tmp_path):
    """As transformers marks what it has read from a GGUF file into plain floats."""
    llm = build_backbone()
    llm.config.quantization_config = GgufConfig(gguf_file="model.gguf")
    llm.hf_quantizer, llm.is_quantized = SimpleNamespace(quantization_config=llm.config.quantization_config), True
    model = get_peft_model(llm, copy.deepcopy(CONFIG))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
    )
    samples = [{"text": "hi", "label": 1.0}] * 8
    Trainer(model, arguments, train_dataset=samples, data_collator=processor().collate).train()
    llm.save_pretrained(tmp_path / "llm")
    assert not hasattr(AutoModelForCausalLM.from_pretrained(tmp_path / "llm").config, "quantization_config")
