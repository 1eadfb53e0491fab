"""What kernels are made of: elementary functions in every digit, and tasks that each run once on torch's threads."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from hf_ecgmamba import numba_vectors
from hf_ecgmamba.numba_vectors import (
    LANES,
    fill,
    gelu,
    log1p,
    maximum,
    next_task,
    power_of_two,
    read,
    run_tasks,
    silu,
    softplus,
    total,
    unpack,
    write,
)

pytestmark = pytest.mark.skipif(not numba_vectors.HAS_NUMBA, reason="numba is not installed")
Sizes, Arrays = namedtuple("Sizes", "size"), namedtuple("Arrays", "source target")
DTYPES = {torch.float32: 3e-7, torch.float64: 2e-15}


def elementary(job):
    _, (x, y) = unpack(job, Sizes, Arrays)
    task = next_task(job)
    while task >= 0:
        value = read(x, task * LANES)
        scale, excess = power_of_two(0.0 - maximum(value, 0.0 - value))
        write(y, (task * 7 + 0) * LANES, scale + scale * excess)
        write(y, (task * 7 + 1) * LANES, excess)
        write(y, (task * 7 + 2) * LANES, log1p(scale + scale * excess))
        one, two = softplus(value)
        write(y, (task * 7 + 3) * LANES, one)
        write(y, (task * 7 + 4) * LANES, two)
        one, two = silu(value)
        write(y, (task * 7 + 5) * LANES, one)
        write(y, (task * 7 + 6) * LANES, two)
        task = next_task(job)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementary_functions(dtype):
    x = torch.cat([torch.linspace(-80, 80, 1952), torch.logspace(-8, 0, 48).repeat(2)]).to(dtype)
    y = torch.empty(len(x) // LANES, 7, LANES, dtype=dtype)
    run_tasks(elementary, dtype, len(y), Sizes(0), Arrays(x, y))
    power, excess, logarithm, plus, slope, gated, gated_slope = y.transpose(0, 1).flatten(1).double()
    x = x.double()
    small = torch.exp2(-x.abs())

    def assert_close(result, expected, digits=1.0):
        torch.testing.assert_close(result, expected, rtol=digits * DTYPES[dtype], atol=1e-37)

    assert_close(power, small)
    near_one = x.abs() < 0.4
    assert_close(excess[near_one], torch.expm1(-x.abs() * torch.tensor(2.0).double().log())[near_one], digits=3)
    assert_close(logarithm, torch.log1p(small))
    # an exponent's digits are lost as it grows: exp(x) in float32 has 24 digits less those of x
    assert_close(plus, torch.nn.functional.softplus(x, threshold=1e3), digits=100)
    assert_close(slope, torch.sigmoid(x), digits=100)
    assert_close(gated, x * torch.sigmoid(x), digits=100)
    sigmoid = torch.sigmoid(x)
    expected = sigmoid * (1 + x * (1 - sigmoid))
    torch.testing.assert_close(gated_slope, expected, rtol=0, atol=5 * DTYPES[dtype])


def apply_gelu(job):
    _, (x, y) = unpack(job, Sizes, Arrays)
    task = next_task(job)
    while task >= 0:
        write(y, task * LANES, gelu(read(x, task * LANES)))
        task = next_task(job)


def test_gelu_in_float32():
    x = torch.cat([torch.linspace(-12, 12, 1952), torch.tensor([0.0, -1e30, 1e30, torch.inf] * 8)])
    y = torch.empty_like(x)
    run_tasks(apply_gelu, x.dtype, len(x) // LANES, Sizes(0), Arrays(x, y))
    expected = torch.nn.functional.gelu(x.double())
    torch.testing.assert_close(y[:1952].double(), expected[:1952], rtol=3e-6, atol=3e-8)
    assert y[1952:].tolist() == x[1952:].clamp(min=0).tolist()
    nothing = torch.full((LANES,), torch.nan)
    run_tasks(apply_gelu, x.dtype, 1, Sizes(0), Arrays(nothing, y))
    assert y[:LANES].isnan().all()


def count(job):
    (size,), (counts, sums) = unpack(job, Sizes, Arrays)
    task = next_task(job)
    while task >= 0:
        counts[task] += 1
        sums[task] = total(fill(counts, task)) + size
        task = next_task(job)


@pytest.fixture(params=["torch's threads", "threads of Python"])
def threads(request, monkeypatch):
    monkeypatch.setattr(numba_vectors, "_WORTH_A_THREAD", 0)
    if request.param == "threads of Python":
        monkeypatch.setattr(numba_vectors, "_parallel_region", None)
    elif numba_vectors._parallel_region is None:
        pytest.skip("this torch was not built with an OpenMP that has GOMP_parallel")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_every_task_runs_once(threads, num_threads):
    torch.set_num_threads(num_threads)
    counts, sums = torch.zeros(1000), torch.zeros(1000)
    for _ in range(20):
        run_tasks(count, torch.float32, 1000, Sizes(3), Arrays(counts, sums))
    assert (counts == 20).all()
    assert torch.equal(sums, torch.arange(1000.0) * LANES + 3)


@pytest.mark.slow
def test_compiled_kernels_are_found_by_the_next_process(tmp_path):
    script = """
import torch
from hf_ecgmamba.numba_vectors import _compile
from hf_ecgmamba import depthwise_convolution, selective_scan_numba
for module in (depthwise_convolution, selective_scan_numba):
    for kernel in (module._forward, module._backward):
        print(_compile(kernel, torch.float32).cache_hits)
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    outputs = [
        subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert [output.stdout.split() for output in outputs] == [["0"] * 4, ["1"] * 4], outputs[-1].stderr
