"""The scan in the place of transformers' own: the library's own outputs and gradients, and its own door."""

import copy

import pytest
import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

import hf_ecgmamba
from hf_ecgmamba import accelerated_mamba
from hf_ecgmamba.accelerated_mamba import FAMILIES, accelerate_mamba, selective_scan_fn
from hf_ecgmamba.numba_vectors import HAS_NUMBA

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed: on a CPU transformers keeps its own")
SIZES = {"vocab_size": 40, "hidden_size": 24, "state_size": 5, "num_hidden_layers": 2, "time_step_rank": 3}


@pytest.fixture(autouse=True)
def own_scan_afterwards():
    yield
    assert not hasattr(modeling_mamba.mamba_selective_scan, "__wrapped__") or not accelerate_mamba._originals


def make(family):
    torch.manual_seed(0)
    if family == "mamba":
        return MambaForCausalLM(MambaConfig(**SIZES, tie_word_embeddings=False)).eval()
    return FalconMambaForCausalLM(FalconMambaConfig(**SIZES, tie_word_embeddings=False)).eval()


def loss_and_gradients(model, tokens):
    model.zero_grad()
    loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@needs_numba
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
@pytest.mark.parametrize("length", [1, 37])
def test_loss_and_gradients_are_the_librarys_own(family, length):
    model, tokens = make(family), torch.randint(40, (2, length))
    labels_need_two = length == 1
    tokens = tokens.repeat(1, 2) if labels_need_two else tokens
    loss, gradients = loss_and_gradients(model, tokens)
    exact = copy.deepcopy(model).double()
    _, right = loss_and_gradients(exact, tokens)
    before = modeling_mamba.mamba_selective_scan
    with accelerate_mamba():
        assert modeling_mamba.mamba_selective_scan is not before
        our_loss, ours = loss_and_gradients(model, tokens)
    assert modeling_mamba.mamba_selective_scan is before
    torch.testing.assert_close(our_loss, loss, atol=1e-6, rtol=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], atol=2e-6, rtol=1e-4, msg=name)
        torch.testing.assert_close(gradient.double(), right[name].double(), atol=2e-6, rtol=1e-4, msg=name)


@needs_numba
def test_generation_goes_on_from_the_same_state(monkeypatch):
    model, tokens = make("mamba"), torch.randint(40, (2, 70))
    with torch.no_grad():
        expected = model(tokens, use_cache=True)
    answer = model.generate(tokens, max_new_tokens=8, do_sample=False)
    called = []
    monkeypatch.setattr(accelerated_mamba, "selective_scan_fn", lambda *a: called.append(1) or selective_scan_fn(*a))
    with accelerate_mamba(), torch.no_grad():
        outputs = model(tokens, use_cache=True)
        again = model.generate(tokens, max_new_tokens=8, do_sample=False)
    assert called
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(outputs.cache_params.layers, expected.cache_params.layers, strict=True):
        torch.testing.assert_close(ours.recurrent_states, theirs.recurrent_states, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, answer)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_what_the_library_returns(dtype):
    model, tokens = make("mamba").to(dtype), torch.randint(40, (1, 20))
    with torch.no_grad():
        expected = model(tokens).logits
        with accelerate_mamba():
            logits = model(tokens).logits
    assert logits.dtype == expected.dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-10
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


def test_one_that_leaves_does_not_undo_what_another_wants():
    before = modeling_mamba.mamba_selective_scan
    lasting = hf_ecgmamba.accelerate_mamba()
    ours = modeling_mamba.mamba_selective_scan
    with accelerate_mamba() as inner:
        inner.undo()
    inner.undo()  # a second time changes nothing
    assert modeling_mamba.mamba_selective_scan is ours
    lasting.undo()
    assert modeling_mamba.mamba_selective_scan is before
    with pytest.raises(ZeroDivisionError), accelerate_mamba():
        raise ZeroDivisionError
    assert modeling_mamba.mamba_selective_scan is before


def test_a_function_that_has_moved_is_named(monkeypatch):
    from transformers.models.zamba import modeling_zamba

    before = modeling_mamba.mamba_selective_scan
    monkeypatch.setattr(modeling_zamba, "mamba_selective_scan", lambda u, delta: u)
    with pytest.raises(ImportError, match=r"modeling_zamba has mamba_selective_scan\('u', 'delta'\); .* 5\.23"):
        accelerate_mamba()
    monkeypatch.delattr(modeling_zamba, "mamba_selective_scan")
    with pytest.raises(ImportError, match="modeling_zamba has no mamba_selective_scan"):
        accelerate_mamba()
    assert modeling_mamba.mamba_selective_scan is before, "nothing is changed by halves"
    assert len(FAMILIES) == 4


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_the_last_state_is_that_of_the_recurrence(length):
    torch.manual_seed(0)
    u, delta = torch.randn(2, 2, 6, length, dtype=torch.float64)
    B, C = torch.randn(2, 2, 4, length, dtype=torch.float64)
    A, D, bias = -torch.rand(6, 4).double(), torch.randn(6).double(), torch.randn(6).double()
    y, state = selective_scan_fn(u, delta, A, B, C, D, None, bias, True, True)
    h, dt = torch.zeros(2, 6, 4).double(), torch.nn.functional.softplus(delta + bias[:, None])
    for t in range(length):
        h = torch.exp(dt[..., t, None] * A) * h + (dt[..., t] * u[..., t])[..., None] * B[:, None, :, t]
        torch.testing.assert_close(y[..., t], (h * C[:, None, :, t]).sum(-1) + D * u[..., t])
    torch.testing.assert_close(state.double(), h, atol=1e-5, rtol=1e-5)


def test_bad_shapes_are_named():
    u, B = torch.zeros(2, 6, 9), torch.zeros(2, 4, 9)
    with pytest.raises(ValueError, match=r"B is \(2, 1, 4, 9\); expected 3 dimensions"):
        selective_scan_fn(u, u, -torch.ones(6, 4), B.unsqueeze(1), B)
    with pytest.raises(ValueError, match=r"A is \(1, 5, 4\); expected"):
        selective_scan_fn(u, u, -torch.ones(5, 4), B, B)
