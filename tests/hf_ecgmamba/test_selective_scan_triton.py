"""The CUDA backends of the selective scan.

Without a GPU the Triton kernels run in Triton's interpreter, against the float64 reference, and are compiled, though
not run, for two generations of GPU; with one, they run on it.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from hf_ecgmamba.selective_scan import selective_scan, selective_scan_chunked, selective_scan_reference
from hf_ecgmamba.selective_scan_mamba_ssm import selective_scan_mamba_ssm, why_not_mamba_ssm
from hf_ecgmamba.selective_scan_triton import selective_scan_triton, why_not_triton

triton = pytest.importorskip("triton", reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")


def random_inputs(directions, batch, time, channels, d_state, dtype=torch.float32, softplus=True, device="cpu"):
    """x, dt, A, B, C, D, dt_bias; step sizes from 1e-6 to 20, whether softplus makes them or not."""
    size = torch.exp(torch.empty(directions, batch, time, channels).uniform_(-13.8, 3.0))
    dt = size + torch.log(-torch.expm1(-size)) if softplus else size
    x = torch.randn(directions, batch, time, channels)
    A = -torch.exp(torch.randn(directions, channels, d_state))
    B, C = (torch.randn(directions, batch, time, d_state) for _ in range(2))
    D = torch.randn(directions, channels)
    dt_bias = torch.randn(directions, channels) if softplus else torch.rand(directions, channels)
    low, high = (x, dt, B, C), (A, D, dt_bias)
    x, dt, B, C = (tensor.to(device, dtype) for tensor in low)
    A, D, dt_bias = (tensor.to(device) for tensor in high)
    return x, dt, A, B, C, D, dt_bias


def scan_and_differentiate(scan, inputs, dy, *arguments, **options):
    """y and the gradients of the inputs, None for inputs that are None."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
    y = scan(*leaves, *arguments, **options)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def relative_errors(results, expected):
    errors = {}
    for name, ours, theirs in zip(("y", *NAMES), results, expected, strict=True):
        if theirs is not None:
            assert ours.isfinite().all(), f"{name} is not finite"
            errors[name] = ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()
    return errors


def errors_against_float64(inputs, softplus=True, mask=None, chunk=None, reference=selective_scan_reference):
    dy = torch.randn_like(inputs[0])
    ours = scan_and_differentiate(selective_scan_triton, inputs, dy, softplus, mask, steps_per_chunk=chunk)
    exact = [None if tensor is None else tensor.double() for tensor in inputs]
    return relative_errors(ours, scan_and_differentiate(reference, exact, dy, softplus, mask))


def assert_close(errors, forward=1e-5, gradients=1e-4):
    wrong = {name: error for name, error in errors.items() if error > (forward if name == "y" else gradients)}
    assert not wrong, f"relative errors {wrong}"


@pytest.fixture(scope="module")
def interpreter():
    """A process of its own, where triton interprets: it decides that once, when the kernels are defined."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        yield lambda function, *arguments, **options: pool.submit(function, *arguments, **options).result()


@pytest.mark.parametrize(
    ("directions", "batch", "time", "channels", "d_state", "chunk"),
    [
        (2, 1, 19, 5, 3, 8),  # three chunks, the last one short; nothing a power of two
        (2, 2, 2, 1, 16, None),
        (1, 1, 17, 2, 16, 16),  # a last chunk of one step
        (2, 1, 3, 33, 8, None),  # more channels than a program takes
        (1, 1, 2, 5, 64, None),
    ],
)
@pytest.mark.parametrize("softplus", [True, False])
def test_interpreted_equals_float64(interpreter, directions, batch, time, channels, d_state, chunk, softplus):
    inputs = random_inputs(directions, batch, time, channels, d_state, softplus=softplus)
    assert_close(interpreter(errors_against_float64, inputs, softplus, chunk=chunk))


def test_interpreted_without_the_optional_inputs(interpreter):
    inputs = random_inputs(1, 1, 1, 3, 1, softplus=False)
    errors = interpreter(errors_against_float64, (*inputs[:5], None, None), False)
    # one step from a state of zero does not depend on A at all
    assert errors.pop("A") == 0
    assert_close(errors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-11)])
def test_interpreted_in_half_precision_keeps_a_float32_state(interpreter, dtype, tolerance):
    # the only roundings are those of the results: half a unit in the last place, a whole one where the interpreter
    # makes a bfloat16 by cutting bits off
    inputs = random_inputs(2, 1, 9, 3, 4, dtype)
    assert_close(interpreter(errors_against_float64, inputs, chunk=8), tolerance, tolerance)


def with_strides(inputs):
    """The same values as they lie in a model: one x for both directions, B and C cut from one projection."""
    x, dt, A, B, C, D, dt_bias = inputs
    x = x[:1].expand(2, -1, -1, -1)
    dt = dt.transpose(2, 3).contiguous().transpose(2, 3)
    B, C = torch.cat((B, C), -1).split(A.shape[-1], -1)
    return x, dt, A, B, C, D, dt_bias


def errors_with_strides(inputs):
    return errors_against_float64(with_strides(inputs), chunk=8)


def test_interpreted_reads_strided_inputs_where_they_lie(interpreter):
    assert_close(interpreter(errors_with_strides, random_inputs(2, 1, 9, 3, 4)))


def results_with_padding(inputs, mask, dy, padding):
    padded = ~mask.unsqueeze(-1)
    x, dt, A, B, C, D, dt_bias = inputs
    x, dt, B, C, dy = (tensor.masked_fill(padded, padding) for tensor in (x, dt, B, C, dy))
    return scan_and_differentiate(
        selective_scan_triton, (x, dt, A, B, C, D, dt_bias), dy, True, mask, steps_per_chunk=8
    )


def test_interpreted_mask(interpreter):
    inputs = random_inputs(2, 2, 10, 2, 3)
    mask = torch.rand(2, 10) < 0.6
    mask[1] = False
    assert_close(interpreter(errors_against_float64, inputs, True, mask, 8))

    # whatever lies in the padding, nothing comes of it
    dy = torch.randn_like(inputs[0])
    clean, dirty = (interpreter(results_with_padding, inputs, mask, dy, value) for value in (0.0, float("nan")))
    for name, ours, theirs in zip(("y", *NAMES), dirty, clean, strict=True):
        assert torch.equal(ours, theirs), name
    for name in ("y", "x", "dt", "B", "C"):
        assert (dirty[("y", *NAMES).index(name)][:, ~mask] == 0).all(), name


def test_interpreted_by_name(interpreter):
    x, dt, A, B, C, D, dt_bias = random_inputs(2, 1, 3, 2, 2)
    y = interpreter(selective_scan, x, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=True, backend="triton")
    torch.testing.assert_close(y, selective_scan_reference(x, dt, A, B, C, D, dt_bias, True))


@pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_kernels_compile_for_a_gpu(capability, tmp_path, monkeypatch):
    """The interpreter forgives what the compiler does not: types of loop variables, Python that Triton lacks."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_ecgmamba import selective_scan_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    per_step = {"x", "dt", "B", "C", "y", "dy", "dx", "ddt"}
    integers = {"batch", "time", "channels", "chunk", "chunks", "numbers"}
    walk = {"D_STATE": 16, "STATES": 16, "SOFTPLUS": True, "BLOCK": 16, "SPAN": 2}
    for kernel, constants in (
        (kernels._forward_kernel, walk | {"y": None, "kept": None}),
        (kernels._forward_kernel, walk | {"totals": None}),
        (kernels._adjoint_kernel, walk),
        (kernels._backward_kernel, walk),
        # a recording alone: Triton turns an argument of 1 into a constant
        (kernels._backward_kernel, walk | {"mask": None, "D": None, "bias": None, "adjoints": None, "batch": 1}),
        (kernels._hand_on_kernel, {"REVERSE": True, "BLOCK": 128}),
    ):
        types = {}
        for name in kernel.arg_names:
            if name in constants:
                types[name] = "constexpr"
            elif name in per_step:
                types[name] = "*bf16"
            elif name in integers or name.endswith(("_direction", "_batch", "_time")):
                types[name] = "i32"
            else:
                types[name] = "*u8" if name == "mask" else "*fp32"
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1, "enable_fp_fusion": True}
        )
        assert compiled.asm["cubin"]


def test_why_not_on_the_cpu():
    x, dt, A, B, C, *_ = random_inputs(2, 1, 3, 2, 2)
    assert "needs a CUDA GPU" in why_not_triton(x, A)
    with pytest.raises(ValueError, match="'triton' cannot serve this input: x is on cpu"):
        selective_scan(x, dt, A, B, C, backend="triton")
    assert "float64" in why_not_triton(x.double(), A)
    assert "65" in why_not_triton(x, A.new_zeros(2, 2, 65))
    with pytest.raises(ValueError, match="'mamba_ssm' cannot serve this input"):
        selective_scan(x, dt, A, B, C, backend="mamba_ssm")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "time", "channels", "d_state"), [(1, 1, 5, 1), (3, 997, 33, 3), (1, 65_536, 64, 16)]
)
def test_on_a_gpu_equals_float64(batch, time, channels, d_state, dtype):
    inputs = random_inputs(2, batch, time, channels, d_state, dtype, device="cuda")
    mask = torch.rand(batch, time, device="cuda") < 0.9
    errors = errors_against_float64(inputs, True, mask, reference=selective_scan_chunked)
    errors.pop("A") if time == 1 else None
    assert_close(errors, *((1e-5, 1e-4) if dtype == torch.float32 else (2**-8, 2**-8)))


@needs_gpu
def test_on_a_gpu_is_deterministic_whatever_the_chunks():
    inputs = random_inputs(2, 1, 5000, 256, 16, device="cuda")
    dy = torch.randn_like(inputs[0])
    first, again, one_chunk = (
        scan_and_differentiate(selective_scan_triton, inputs, dy, True, None, steps_per_chunk=chunk)
        for chunk in (64, 64, 5000)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert_close(relative_errors(first, [tensor.double() for tensor in one_chunk]))


@needs_gpu
@pytest.mark.skipif(why_not_mamba_ssm(*random_inputs(2, 1, 1, 1, 1)[:3:2]) is not None, reason="mamba_ssm is missing")
def test_on_a_gpu_equals_mamba_ssm():
    inputs = random_inputs(2, 2, 1000, 64, 16, device="cuda")
    dy, mask = torch.randn_like(inputs[0]), torch.rand(2, 1000, device="cuda") < 0.9
    ours, theirs = (
        scan_and_differentiate(scan, inputs, dy, True, mask)
        for scan in (selective_scan_triton, selective_scan_mamba_ssm)
    )
    assert_close(relative_errors(ours, [tensor.double() for tensor in theirs]))
