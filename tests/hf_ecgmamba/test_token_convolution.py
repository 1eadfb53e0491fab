"""Convolutions with half the multiplications, against torch's Conv1d in float64, and the weights kept for them."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_ecgmamba import EcgMambaConfig, EcgMambaForSequenceClassification, token_convolution
from hf_ecgmamba.numba_vectors import HAS_NUMBA
from hf_ecgmamba.token_convolution import can_use_kernels, convolve_and_normalise, convolve_tokens, feed_forward

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
# taps and stride
KINDS = [(3, 1), (5, 1), (7, 2), (5, 2), (4, 2), (2, 1), (4, 1), (9, 2)]


def make_inputs(batch, time, taps):
    random = torch.Generator().manual_seed(time)
    x = torch.randn(batch, time, 32, generator=random)
    weight = torch.randn(64, 32, taps, generator=random) / (32 * taps) ** 0.5
    return x, weight, torch.randn(64, generator=random)


def by_conv1d(x, weight, bias, stride, padding, num_outputs):
    behind = (num_outputs - 1) * stride + weight.shape[2] - x.shape[1] - padding
    return F.conv1d(F.pad(x.transpose(1, 2), (padding, behind)), weight, bias, stride).transpose(1, 2)


def run(convolve, tensors, *sizes):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = convolve(*leaves, *sizes)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, *torch.autograd.grad(y, leaves, upstream.to(y.dtype))


@pytest.mark.parametrize("time", [1, 2, 5, 125, 400])
@pytest.mark.parametrize(("taps", "stride"), KINDS)
@pytest.mark.parametrize("uses_kernels", [pytest.param(True, marks=needs_numba), False])
def test_values_and_gradients_are_those_of_conv1d(monkeypatch, uses_kernels, taps, stride, time):
    if not uses_kernels:
        monkeypatch.setattr(token_convolution, "HAS_NUMBA", False)
    tensors, sizes = make_inputs(3, time, taps), (stride, (taps - stride) // 2, -(-time // stride))
    assert can_use_kernels(tensors[0], tensors[1], stride) == uses_kernels
    expected = run(by_conv1d, [tensor.double() for tensor in tensors], *sizes)
    for result, right in zip(run(convolve_tokens, tensors, *sizes), expected, strict=True):
        assert (result - right).abs().max() <= 1e-5 * right.abs().max()


@needs_numba
def test_many_recordings_are_taken_in_parts_and_the_number_of_threads_changes_no_bit(monkeypatch):
    tensors, before, results = make_inputs(9, 60, 3), torch.get_num_threads(), []
    try:
        for at_once, threads in ((10_000, 2), (30, 1), (30, 2)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(token_convolution, "TILES_AT_ONCE", at_once)
            results.append(run(convolve_tokens, tensors, 1, 1, 60))
    finally:
        torch.set_num_threads(before)
    expected = run(by_conv1d, [tensor.double() for tensor in tensors], 1, 1, 60)
    for whole, one_thread, two_threads, right in zip(*results, expected, strict=True):
        for result in (whole, one_thread, two_threads):
            assert (result - right).abs().max() <= 1e-5 * right.abs().max()


def make_layers(taps, stride):
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return nn.Conv1d(32, 64, taps, stride), nn.Conv1d(64, 32, taps, padding=taps // 2), norm


@needs_numba
@pytest.mark.parametrize("time", [1, 3, 125, 400])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_what_is_fused_is_what_its_parts_are(time, masked):
    mask = (torch.arange(time) < torch.tensor([[time], [1], [-(-time // 2)]])) if masked else None
    keep = torch.ones(3, time, 1) if mask is None else mask.unsqueeze(-1)

    first, second, norm = (layer.double() for layer in make_layers(5, 2))
    x, _, _ = make_inputs(3, 2 * time, 3)
    expected = F.gelu(norm(by_conv1d(x.double(), first.weight, first.bias, 2, 1, time))) * keep
    first, norm = first.float(), norm.float()
    torch.testing.assert_close(
        convolve_and_normalise(x, first, norm, time, mask), expected.float(), atol=1e-5, rtol=1e-5
    )

    first, second, _ = make_layers(3, 1)
    first.padding = (1,)
    x, _, _ = make_inputs(3, time, 3)
    exact = [copy.deepcopy(layer).double().requires_grad_(False) for layer in (first, second)]
    between = F.gelu(exact[0]((x * keep).double().transpose(1, 2))) * keep.transpose(1, 2)
    expected = exact[1](between).transpose(1, 2).float()
    torch.testing.assert_close(feed_forward(x, first, second, mask), expected, atol=1e-5, rtol=1e-5)
    garbage = torch.where(keep.bool(), x, torch.tensor(float("nan")))
    assert torch.equal(feed_forward(garbage, first, second, mask), feed_forward(x, first, second, mask))


def real_model(**changes):
    """As wide as the kernels want it; the weights moved off their start."""
    torch.manual_seed(0)
    config = EcgMambaConfig(leads=("I", "II"), hidden_size=32, num_hidden_layers=2, num_labels=3, **changes)
    model = EcgMambaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@needs_numba
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_the_network_is_the_same_with_and_without_kernels_and_gradients(monkeypatch, taps):
    model, record = real_model(feed_forward_kernel_size=taps), torch.randn(3, 2, 203)
    mask = torch.ones(3, 203)
    mask[1, 90:] = 0
    learning = model(record, mask, output_hidden_states=True)
    with torch.no_grad():
        inferring = model(record, mask, output_hidden_states=True)
        exact = copy.deepcopy(model).double()(record.double(), mask)
        alone = model(record[1:2, :, :90])
        monkeypatch.setattr(token_convolution, "HAS_NUMBA", False)
        plain = model(record, mask, output_hidden_states=True)
    for other in (learning, inferring, plain):
        torch.testing.assert_close(other.logits.double(), exact.logits, atol=1e-5, rtol=1e-5)
        # before the first block, padded tokens are zero
        assert (other.hidden_states[0][1, 12:] == 0).all()
    torch.testing.assert_close(inferring.logits[1:2], alone.logits, atol=1e-5, rtol=1e-5)


@needs_numba
@torch.no_grad()
def test_weights_that_were_kept_are_not_used_once_they_have_changed():
    model, record = real_model(), torch.randn(1, 2, 100)
    weight = model.ecgmamba.blocks[1].feed_forward.expand.weight
    first = model(record).logits

    def change_in_place():
        weight.mul_(2)

    def change_one_number_of_data():
        weight.data[0, 0, 0] += 10

    def change_storage():
        weight.data = torch.randn_like(weight)

    def swap_numbers():
        weight.data[:] = weight.data.flip(0)

    seen = [first]
    for change in (change_in_place, change_one_number_of_data, change_storage, swap_numbers):
        change()
        logits = model(record).logits
        assert all(not torch.equal(logits, other) for other in seen)
        torch.testing.assert_close(logits, copy.deepcopy(model)(record).logits, atol=0, rtol=0)
        seen.append(logits)
    for other in (model.double(), model.float()):  # the same parameter object with other numbers
        record = record.to(other.dtype)
        assert other(record).logits.isfinite().all()
    torch.testing.assert_close(model(record).logits, logits, atol=1e-6, rtol=1e-6)


@needs_numba
def test_kept_weights_go_with_their_model():
    import gc

    gc.collect()
    before = len(token_convolution._kept_weights)
    model = real_model()
    with torch.inference_mode():
        model(torch.randn(1, 2, 100))
    assert len(token_convolution._kept_weights) > before
    del model
    gc.collect()
    assert len(token_convolution._kept_weights) == before


@needs_numba
def test_threads_may_ask_one_model_at_once():
    model, records = real_model(), [torch.randn(1, 2, 100 + i) for i in range(8)]
    with torch.no_grad():
        expected = [copy.deepcopy(model)(record).logits for record in records]
    results = [None] * len(records)

    def ask(i):
        with torch.no_grad():
            for _ in range(5):
                results[i] = model(records[i]).logits

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(records))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("taps", [1, 3])
def test_bfloat16_and_autocast_stay_close(taps):
    model, record = real_model(feed_forward_kernel_size=taps), torch.randn(2, 2, 300)
    with torch.no_grad():
        exact = model(record).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(record).logits
        half = model.bfloat16()(record).logits
    for other in (rounded, half):
        torch.testing.assert_close(other.float(), exact, atol=0.1, rtol=0.1)


@needs_numba
def test_it_compiles_in_one_graph_and_learns_the_same_there():
    model, record = real_model(hidden_dropout=0.0), torch.randn(2, 2, 60)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(record).logits, model(record).logits, atol=1e-5, rtol=1e-5)
    for each in (model, compiled):
        each(record).logits.square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
