import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_mse_adapter import AnswerFormat, MseAdapterConfig, MseForConditionalGeneration

from .tiny_backbones import ARCHITECTURES, build_backbone, build_batch, build_tokenizer

CONFIG = MseAdapterConfig(audio_dim=5, vision_dim=4, dropout=0.0)


def wrapped(llm, seed=0, config=CONFIG):
    torch.manual_seed(seed)
    return get_peft_model(llm, copy.deepcopy(config))


def bare_outputs(llm, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = llm(**inputs).logits
        return logits, llm.generate(**inputs, max_new_tokens=5, do_sample=False)


def assert_bit_identical(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_llm_is_untouched(architecture):
    llm, batch = build_backbone(architecture), build_batch()
    weights, bare = copy.deepcopy(llm.state_dict()), bare_outputs(llm, batch)
    model = wrapped(llm)

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    model(**batch).loss.backward()
    optimizer.step()
    model.eval()
    with model.disable_adapter():
        assert_bit_identical(bare_outputs(model, batch), bare)
        # a whole batch with modalities, too, is to the LLM only its tokens
        assert torch.equal(model(**{k: v for k, v in batch.items() if k != "labels"}).logits, bare[0])
    assert not torch.equal(model.generate(**batch, max_new_tokens=5, do_sample=False), bare[1])

    model.add_adapter("second", copy.deepcopy(CONFIG))
    model.set_adapter("second")
    with model.disable_adapter():
        assert_bit_identical(bare_outputs(model, batch), bare)
    model.delete_adapter("default")

    assert model.unload() is llm
    assert_bit_identical(bare_outputs(llm, batch), bare)
    assert weights.keys() == llm.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in llm.state_dict().items())


def test_only_the_adapter_is_trained_and_saved(tmp_path):
    model = wrapped(build_backbone())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("mse_adapter_modules.default" in name for name in trained)
    assert model.get_nb_trainable_parameters()[0] == sum(p.numel() for p in model.base_model.adapter.parameters())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(trained) and all("mse_adapter_modules." in name for name in saved)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load(tmp_path, low_cpu_mem_usage):
    batch, model = build_batch(), wrapped(build_backbone()).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_auto_peft_model_fetches_the_llm(tmp_path):
    build_backbone("Qwen2").save_pretrained(tmp_path / "llm")
    batch = build_batch()
    model = wrapped(AutoModelForCausalLM.from_pretrained(tmp_path / "llm")).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert torch.equal(loaded.generate(**batch, max_new_tokens=3), model.generate(**batch, max_new_tokens=3))


def test_adapters_side_by_side(tmp_path):
    batch = build_batch()
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, scales=(2,), head="alone")
    for seed, name in enumerate(("one", "two")):
        wrapped(build_backbone(), seed, config if name == "two" else CONFIG).save_pretrained(tmp_path / name)
    alone = {
        name: PeftModel.from_pretrained(build_backbone(), tmp_path / name)(**batch).loss for name in ("one", "two")
    }
    model = PeftModel.from_pretrained(build_backbone(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("two", "one", "two"):
        model.set_adapter(name)
        assert torch.equal(model(**batch).loss, alone[name])
    model.delete_adapter("two")
    assert torch.equal(model(**batch).loss, alone["one"])


def test_several_active_adapters_are_refused():
    model = wrapped(build_backbone())
    model.add_adapter("second", copy.deepcopy(CONFIG))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="exactly one"):
        model(**build_batch())


def test_merging_and_native_loading_are_refused(tmp_path):
    model = wrapped(build_backbone())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge()
    with pytest.raises(ValueError, match="cannot be added up"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"MSE_ADAPTER.*get_peft_model"):
        build_backbone().load_adapter(str(tmp_path))


def test_inputs_embeds_are_refused():
    with pytest.raises(ValueError, match="inputs_embeds"):
        wrapped(build_backbone())(inputs_embeds=torch.zeros(1, 2, 64), labels=torch.zeros(1, 2))


def test_answers_through_peft_and_through_the_model_are_the_same(tmp_path):
    batch, answers = build_batch(), AnswerFormat(build_tokenizer())
    llm = build_backbone("Qwen3")
    peft_model = wrapped(llm).eval()
    peft_model.save_pretrained(tmp_path)
    expected = [prediction.value for prediction in peft_model.predict(batch, answers)]
    ours = MseForConditionalGeneration.from_pretrained(tmp_path, backbone=build_backbone("Qwen3"))
    assert [prediction.value for prediction in ours.predict(batch, answers)] == expected

    ours.save_as_peft(tmp_path / "back")
    back = PeftModel.from_pretrained(build_backbone("Qwen3"), tmp_path / "back")
    assert torch.equal(back(**batch).loss, peft_model(**batch).loss)


def test_bfloat16_llm_keeps_a_float32_adapter():
    model = wrapped(build_backbone().bfloat16())
    assert {p.dtype for p in model.base_model.adapter.parameters()} == {torch.float32}
    output = model(**build_batch())
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.base_model.adapter.parameters())


def test_gradient_checkpointing_without_the_llms_dropout():
    model, batch = wrapped(build_backbone("Llama", attention_dropout=0.5)).train(), build_batch()
    loss, calls = model(**batch).loss, []
    model.gradient_checkpointing_enable()
    model.language_model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    recomputed = model(**batch).loss
    recomputed.backward()
    assert torch.equal(recomputed, loss) and len(calls) == 2


def test_trainer_resumes_and_loads_the_best(tmp_path):
    rows = [dict(zip(build_batch(), values, strict=True)) for values in zip(*build_batch().values(), strict=True)] * 4

    def train(folder, resume=None, steps=6):
        model = wrapped(build_backbone())
        arguments = TrainingArguments(
            str(folder),
            per_device_train_batch_size=2,
            max_steps=6,
            save_steps=3,
            eval_steps=3,
            eval_strategy="steps",
            load_best_model_at_end=True,
            label_names=["labels"],
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:3])
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    whole, trainer = train(tmp_path / "whole")
    # had training not gone on after step 3, the resumed run could not be told from one that did nothing
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    best = load_file(f"{trainer.state.best_model_checkpoint}/adapter_model.safetensors")
    assert not any("base_layer" in name for name in best)
    resumed, _ = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    now = whole.base_model.adapter.state_dict()
    assert all(torch.equal(now[name.split("mse_adapter_modules.")[1]], value) for name, value in best.items())
