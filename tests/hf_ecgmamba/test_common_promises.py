"""What transformers' and PEFT's own test mixins promise of any model, asked of all three ECGMamba models."""

import copy
import pickle

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_ecgmamba import EcgMambaForMaskedModeling, EcgMambaForSequenceClassification, EcgMambaModel
from tests.hf_ecgmamba.test_modeling_ecgmamba import randomised, tiny_config

CLASSES = (EcgMambaModel, EcgMambaForSequenceClassification, EcgMambaForMaskedModeling)
TARGETS = (["in_proj", "out_proj"], ["convolutions.0", "convolutions.1"], ["expand", "contract"], "all-linear")


@pytest.fixture(params=CLASSES, ids=lambda each: each.__name__)
def model(request):
    torch.manual_seed(0)
    return randomised(request.param(tiny_config(hidden_dropout=0.0))).eval()


def batch_for(model):
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_values": torch.randn(2, 3, 60, generator=generator),
        "attention_mask": (torch.arange(60) < torch.tensor([[60], [41]])).long(),
    }
    if isinstance(model, EcgMambaForSequenceClassification):
        batch["labels"] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    if isinstance(model, EcgMambaForMaskedModeling):
        batch["masked_tokens"] = torch.arange(10).expand(2, 10) % 3 == 0
    return batch


def first_of(outputs):
    """What training starts from: the loss, or all of the last hidden state."""
    return outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()


def outputs_of(model, **changes):
    with torch.no_grad():
        return model(**(batch_for(model) | changes))


def assert_same(first, second, **tolerance):
    assert list(first) == list(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name, **tolerance)


def test_the_same_twice_and_from_any_copy(model, tmp_path):
    expected = outputs_of(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert_same(outputs_of(other), expected, rtol=0, atol=0)


def test_hidden_states_and_tuples(model):
    expected = outputs_of(model)
    states = outputs_of(model, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 10, 16)] * (1 + model.config.num_hidden_layers)
    model.config.output_hidden_states = True
    for state, other in zip(outputs_of(model).hidden_states, states, strict=True):
        assert torch.equal(state, other)
    model.config.output_hidden_states = False
    assert outputs_of(model).get("hidden_states") is None
    for value, other in zip(outputs_of(model, return_dict=False), expected.to_tuple(), strict=True):
        assert torch.equal(value, other)


def test_gradients_of_hidden_states_are_kept(model):
    outputs = model(**batch_for(model), output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()
    first_of(outputs).backward()
    assert all(state.grad.abs().sum() > 0 for state in outputs.hidden_states)


def test_every_parameter_learns(model):
    first_of(model.train()(**batch_for(model))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cast_and_loaded_in_another_dtype(model, dtype, tmp_path):
    expected = outputs_of(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype, device_map="cpu")
    exact = [name for name, value in loaded.named_parameters() if value.dtype != dtype]
    assert all(name.rsplit(".", 1)[-1] in model._keep_in_fp32_modules_strict for name in exact)
    for each in (loaded, copy.deepcopy(model).to(dtype)):
        for name, value in outputs_of(each).items():
            if value.is_floating_point():
                torch.testing.assert_close(value.float(), expected[name], rtol=0.1, atol=0.05, msg=name)
    assert type(model).from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    assert {value.dtype for value in model.half().parameters()} == {torch.float16}


def test_weights_that_lie_elsewhere(model, tmp_path):
    """accelerate brings a module's weights when it is called; what reads them without a call would find none."""
    expected = outputs_of(model)
    model.save_pretrained(tmp_path / "model")
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert_same(outputs_of(offloaded), expected)
    on_disk = accelerate.disk_offload(copy.deepcopy(model), tmp_path / "weights", execution_device=torch.device("cpu"))
    assert_same(outputs_of(on_disk), expected)
    assert_same(outputs_of(type(model).from_pretrained(tmp_path / "model", device_map={"": "cpu"})), expected)


def test_embeddings_are_the_first_convolution(model):
    first = model.get_input_embeddings()
    assert isinstance(first, nn.Conv1d) and first is model.base_model.encoder.convolutions[0]
    expected = outputs_of(model)
    with torch.no_grad():
        model.set_input_embeddings(copy.deepcopy(first))
    assert model.get_input_embeddings() is not first
    assert_same(outputs_of(model), expected)
    assert model.get_output_embeddings() is None
    model.tie_weights()
    with pytest.raises(ValueError, match="no token embeddings to resize"):
        model.resize_token_embeddings(10)


def test_checkpointing_by_config(model):
    config = copy.deepcopy(model.config)
    config.gradient_checkpointing = True
    assert type(model)(config).is_gradient_checkpointing


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_lora_with_gradient_checkpointing(model, targets, use_reentrant):
    config = LoraConfig(target_modules=targets, r=4, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config).train()
    expected = adapted(**batch_for(model))
    first_of(expected).backward()
    gradients = {name: value.grad for name, value in adapted.named_parameters() if value.requires_grad}
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients.values())

    adapted.zero_grad()
    adapted.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    adapted.enable_input_require_grads()
    outputs = adapted(**batch_for(model))
    torch.testing.assert_close(first_of(outputs), first_of(expected))
    first_of(outputs).backward()
    for name, value in adapted.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, gradients[name], msg=name)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_lora_acts_saves_and_merges(model, targets, tmp_path):
    """Also in the modules whose weights the kernels read by themselves."""
    plain = outputs_of(model)
    original = copy.deepcopy(model)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, r=4, init_lora_weights=False)).eval()
    expected = outputs_of(adapted)
    name = next(name for name in ("logits", "reconstruction", "last_hidden_state") if name in expected)
    assert (expected[name] - plain[name]).abs().max() > 1e-2
    with adapted.disable_adapter():
        assert_same(outputs_of(adapted), plain)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(original, tmp_path).eval()
    assert_same(outputs_of(again), expected)
    assert_same(outputs_of(adapted.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_trained_apart(model):
    """PEFT stands around modules_to_save, of which only the copy learns."""
    adapted = get_peft_model(model, LoraConfig(target_modules=["in_proj"], modules_to_save=["norms.0", "expand"]))
    plain = outputs_of(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.5)
    name = next(name for name in ("logits", "reconstruction", "last_hidden_state") if name in plain)
    assert (outputs_of(adapted)[name] - plain[name]).abs().max() > 1e-2
