"""Every backend against the float64 reference, on ordinary and on hard inputs."""

import importlib.util
import math
import os
import threading

import pytest
import torch
from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

from hf_ecgmamba import selective_scan_numba
from hf_ecgmamba.selective_scan import available_backends, selective_scan

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BACKENDS = [(device, name) for device in DEVICES for name in available_backends(device) if name != "reference"]
every_backend = pytest.mark.parametrize(("device", "backend"), BACKENDS)
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
needs_numba = pytest.mark.skipif("numba" not in available_backends(), reason="numba is not installed")


def make_inputs(directions=2, batch=2, time=37, channels=5, d_state=4, dt_range=(1e-3, 0.1), softplus=True, seed=0):
    """Float64 tensors by name, dt log-uniform in its range once bias and softplus have been applied."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    low, high = map(math.log, dt_range)
    dt = torch.rand(directions, batch, time, channels, generator=random, dtype=torch.float64)
    dt = torch.exp(low + (high - low) * dt)
    bias = normal(directions, channels) if softplus else None
    if softplus:
        dt = dt + torch.log(-torch.expm1(-dt)) - bias[:, None, None]
    return {
        "x": normal(directions, batch, time, channels),
        "dt": dt,
        "A": -torch.rand(directions, channels, d_state, generator=random, dtype=torch.float64) * 16 - 0.01,
        "B": normal(directions, batch, time, d_state),
        "C": normal(directions, batch, time, d_state),
        "D": normal(directions, channels),
        "dt_bias": bias,
    }


def run(inputs, backend, *, mask=None, softplus=True, dtype=torch.float64, device="cpu", weight=None):
    """y and the gradients of sum(weight * y), in float64 on the CPU, by name."""
    leaves = {name: tensor.to(device, dtype).requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    mask = None if mask is None else mask.to(device)
    y = selective_scan(**leaves, dt_softplus=softplus, mask=mask, backend=backend)
    if weight is None:
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(y, list(leaves.values()), weight.to(y))
    results = dict(zip(("y", *leaves), (y, *gradients), strict=True))
    return {name: tensor.detach().double().cpu() for name, tensor in results.items()}


def assert_close(results, expected, forward=1e-5, gradient=1e-4):
    for name, tensor in results.items():
        assert tensor.isfinite().all(), f"{name} is not finite"
        largest = expected[name].abs().max().item()
        error = (tensor - expected[name]).abs().max().item()
        tolerance = forward if name == "y" else gradient
        assert error <= tolerance * largest + 1e-30, f"{name}: error {error:.2e} of {largest:.2e}"


HARD = {
    "one step": {"time": 1},
    "two steps": {"time": 2},
    "prime length": {"time": 251, "channels": 33},
    "one state": {"d_state": 1, "time": 70},
    "64 states": {"d_state": 64, "time": 70},
    "one channel": {"channels": 1, "time": 70},
    "many odd channels": {"channels": 131, "time": 33, "batch": 1},
    "one direction": {"directions": 1, "time": 100},
    "tiny steps": {"dt_range": (1e-6, 2e-6), "time": 300},
    "huge steps": {"dt_range": (10, 20), "time": 300},
    "tiny to huge steps": {"dt_range": (1e-6, 20), "time": 1031, "d_state": 16},
    "huge steps as given": {"dt_range": (1e-6, 20), "softplus": False, "time": 300},
}


@every_backend
@pytest.mark.parametrize("case", HARD.values(), ids=HARD)
def test_float32_agrees_with_the_float64_reference(device, backend, case):
    inputs, softplus = make_inputs(**case), case.get("softplus", True)
    # what float32 can hold, so that the error measured is the scan's own
    inputs = {name: None if tensor is None else tensor.float().double() for name, tensor in inputs.items()}
    expected = run(inputs, "reference", softplus=softplus)
    assert_close(run(inputs, backend, softplus=softplus, dtype=torch.float32, device=device), expected)


@pytest.fixture(scope="module", params=[(1e-6, 20), (1e-6, 1.0001e-6)], ids=["any step", "equal tiny steps"])
def long_recording(request):
    inputs = make_inputs(
        directions=1, batch=1, time=65_536, channels=2, d_state=2, dt_range=request.param, softplus=False
    )
    inputs = {name: None if tensor is None else tensor.float().double() for name, tensor in inputs.items()}
    return inputs, run(inputs, "reference", softplus=False)


@pytest.mark.slow
@every_backend
def test_65536_steps(device, backend, long_recording):
    inputs, expected = long_recording
    assert_close(run(inputs, backend, softplus=False, dtype=torch.float32, device=device), expected)


def masks(batch, time):
    random = torch.rand(batch, time, generator=torch.Generator().manual_seed(2)) > 0.4
    step = torch.arange(time)
    return {
        "left": step.expand(batch, time) >= torch.tensor([[time // 2], [0], [3]]),
        "right": step.expand(batch, time) < torch.tensor([[time // 2], [time], [1]]),
        "middle": (step.expand(batch, time) < time // 3) | (step >= time // 2),
        "anywhere": random,
        "a row of padding alone": random & torch.tensor([[True], [False], [True]]),
        "nothing but padding": torch.zeros(batch, time, dtype=torch.bool),
    }


@every_backend
@pytest.mark.parametrize("where", masks(3, 41))
@pytest.mark.parametrize("softplus", [True, False])
def test_masked_steps_change_nothing(device, backend, where, softplus):
    mask = masks(3, 41)[where]
    inputs = make_inputs(batch=3, time=41, softplus=softplus)
    expected = run(inputs, "reference", mask=mask, softplus=softplus)
    results = run(inputs, backend, mask=mask, softplus=softplus, dtype=torch.float32, device=device)
    assert_close(results, expected)
    for name in ("y", "x", "dt", "B", "C"):
        assert (results[name][:, ~mask] == 0).all(), f"{name} is not zero where steps are masked"


@every_backend
def test_a_padded_recording_equals_the_recording_alone(device, backend):
    inputs, length, before = make_inputs(batch=1, time=50, channels=40), 31, 7
    alone = {
        name: tensor[:, :, before : before + length] if tensor.ndim == 4 else tensor for name, tensor in inputs.items()
    }
    mask = torch.zeros(1, 50, dtype=torch.bool)
    mask[:, before : before + length] = True
    weight = torch.randn(2, 1, 50, 40, dtype=torch.float64)
    padded = run(inputs, backend, mask=mask, dtype=torch.float32, device=device, weight=weight)
    short = weight[:, :, before : before + length]
    expected = run(alone, backend, dtype=torch.float32, device=device, weight=short)
    for name in NAMES:
        tensor = padded[name][:, :, before : before + length] if padded[name].ndim == 4 else padded[name]
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded["y"][:, :, before : before + length], expected["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked", "numba"])
@pytest.mark.parametrize(("softplus", "masked"), [(True, True), (False, False)])
def test_gradients_are_those_of_the_function(backend, softplus, masked):
    if backend not in available_backends(dtype=torch.float64):
        pytest.skip("numba is not installed")
    inputs = make_inputs(batch=2, time=6, channels=3, d_state=2, dt_range=(0.1, 1), softplus=softplus)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], dtype=torch.bool) if masked else None

    def scan(*tensors):
        return selective_scan(
            **dict(zip(leaves, tensors, strict=True)), dt_softplus=softplus, mask=mask, backend=backend
        )

    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


@every_backend
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("where", [None, "anywhere", "a row of padding alone"])
def test_a_gate_takes_the_directions_sum_times_its_silu(device, backend, directions, where):
    inputs = make_inputs(directions=directions, batch=3, time=41, channels=70)
    wide = torch.randn(3, 41, 140, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = None if where is None else masks(3, 41)[where]
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in (inputs | {"wide": wide}).items()}
    scan = {name: leaves[name] for name in inputs}
    y = selective_scan(**scan, dt_softplus=True, mask=mask, backend="reference")
    expected_y = y.sum(0) * torch.nn.functional.silu(leaves["wide"][..., 70:])
    weight = torch.randn(expected_y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected_y, list(leaves.values()), weight)
    expected = dict(zip(("y", *leaves), (expected_y.detach(), *gradients), strict=True))

    leaves = {
        name: tensor.to(device, torch.float32).requires_grad_() for name, tensor in (inputs | {"wide": wide}).items()
    }
    # as a model hands it over: a slice of a wider projection
    scan, gate = {name: leaves[name] for name in inputs}, leaves["wide"][..., 70:]
    mask = None if mask is None else mask.to(device)
    y = selective_scan(**scan, dt_softplus=True, gate=gate, mask=mask, backend=backend)
    gradients = torch.autograd.grad(y, list(leaves.values()), weight.to(y))
    results = dict(zip(("y", *leaves), (y.detach(), *gradients), strict=True))
    assert_close({name: tensor.double().cpu() for name, tensor in results.items()}, expected)


@every_backend
@pytest.mark.parametrize("learns", [False, True])
def test_step_sizes_of_low_rank(device, backend, learns):
    inputs, random = make_inputs(time=50, channels=70), torch.Generator().manual_seed(5)
    projected = torch.randn(2, 2, 50, 11, generator=random, dtype=torch.float64)
    weight = torch.randn(2, 3, 70, generator=random, dtype=torch.float64)

    def scan(dtype, device, backend, whole):
        tensors = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
        wide, matrix = (tensor.to(device, dtype).requires_grad_(learns) for tensor in (projected, weight))
        tensors |= {"dt": wide[..., 4:7] @ matrix.unsqueeze(1)} if whole else {"dt": wide[..., 4:7]}
        y = selective_scan(**tensors, dt_weight=None if whole else matrix, dt_softplus=True, backend=backend)
        gradients = torch.autograd.grad(y.sin().sum(), (wide, matrix)) if learns else ()
        return {name: tensor.detach().double().cpu() for name, tensor in zip("yab", (y, *gradients), strict=False)}

    expected = scan(torch.float64, "cpu", "reference", whole=True)
    assert_close(scan(torch.float32, device, backend, whole=False), expected)


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(device, backend, dtype):
    inputs = {name: tensor.to(dtype).double() for name, tensor in make_inputs(time=130, channels=64).items()}
    expected, results = run(inputs, "reference"), run(inputs, backend, dtype=dtype, device=device)
    # the state is float32: what is left is the rounding of y, and of gradients, to the input's digits
    digits = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert_close(results, expected, forward=2 * digits, gradient=2 * digits)
    tensors = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
    assert selective_scan(**tensors, dt_softplus=True, backend=backend).dtype == dtype


@every_backend
def test_repeated_runs_are_bitwise_equal(device, backend):
    inputs = make_inputs(time=200, channels=70)
    first, second = (run(inputs, backend, dtype=torch.float32, device=device) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@needs_numba
def test_the_number_of_threads_changes_no_bit():
    inputs, before = make_inputs(batch=3, time=150, channels=200), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(inputs, "numba", dtype=torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


@needs_numba
@pytest.mark.parametrize("gated", [False, True])
def test_large_outputs_that_go_past_the_caches_are_the_same(monkeypatch, gated):
    inputs, results = make_inputs(time=150, channels=70), []
    gate = torch.randn(2, 150, 70, generator=torch.Generator().manual_seed(3)) if gated else None
    for streams in (False, True):
        monkeypatch.setattr(selective_scan_numba, "shall_stream", lambda output, streams=streams: streams)
        leaves = {name: tensor.float().requires_grad_() for name, tensor in inputs.items()}
        y = selective_scan(**leaves, dt_softplus=True, gate=gate, backend="numba")
        results.append((y, *torch.autograd.grad(y.sin().sum(), list(leaves.values()))))
    assert all(torch.equal(written, streamed) for written, streamed in zip(*results, strict=True))


@needs_numba
def test_concurrent_callers_do_not_disturb_each_other():
    many = [make_inputs(time=300, channels=70, seed=seed) for seed in range(4)]
    expected = [run(inputs, "numba", dtype=torch.float32) for inputs in many]
    results = [None] * len(many)

    def call(i):
        for _ in range(5):
            results[i] = run(many[i], "numba", dtype=torch.float32)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        assert all(torch.equal(result[name], right[name]) for name in right)


@needs_numba
def test_a_forked_process_can_scan():
    # torch's own threads, which the parent's scan ran on, do not survive a fork: the child uses others
    inputs = make_inputs(time=50, channels=128)
    tensors = {name: tensor.float() for name, tensor in inputs.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # threads of the parent, which the child does not have
    try:
        expected = selective_scan(**tensors, dt_softplus=True, backend="numba")
        child = os.fork()
        if child == 0:
            same = torch.equal(selective_scan(**tensors, dt_softplus=True, backend="numba"), expected)
            os._exit(0 if same else 1)
    finally:
        torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@every_backend
def test_one_direction_is_the_mixer_of_transformers(device, backend):
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=24, intermediate_size=48, state_size=16, num_hidden_layers=1)
    mixer = MambaMixer(config, layer_idx=0)
    hidden_states = torch.randn(2, 61, 24)
    with torch.no_grad():
        expected = mixer(hidden_states)
        x, gate = mixer.in_proj(hidden_states).chunk(2, dim=-1)
        x = mixer.act(mixer.conv1d(x.transpose(1, 2))[..., :61]).transpose(1, 2)
        dt, B, C = mixer.x_proj(x).split([mixer.time_step_rank, 16, 16], dim=-1)
        dt = dt @ mixer.dt_proj.weight.T
        tensors = (x, dt, -torch.exp(mixer.A_log), B, C, mixer.D)
        y = selective_scan(
            *(tensor[None].to(device) for tensor in tensors),
            dt_bias=mixer.dt_proj.bias[None].to(device),
            dt_softplus=True,
            backend=backend,
        )
        torch.testing.assert_close(mixer.out_proj(y[0].cpu() * mixer.act(gate)), expected, rtol=1e-4, atol=1e-5)


def test_the_second_direction_is_the_first_on_a_flipped_recording():
    inputs = make_inputs(directions=1)
    flipped = {name: tensor.flip(2) if tensor.ndim == 4 else tensor for name, tensor in inputs.items()}
    both = {name: torch.cat((flipped[name], tensor)) for name, tensor in inputs.items()}
    y = selective_scan(**both, dt_softplus=True, backend="reference")
    torch.testing.assert_close(y[1].flip(1), y[0])


@every_backend
def test_a_constant_input_has_the_closed_form(device, backend):
    """h_t = dt x B (1 - a^t) / (1 - a) with a = exp(dt A)."""
    time, dt, rate = 100, 0.05, -2.0
    tensors = [torch.ones(1, 1, time, 1), torch.full((1, 1, time, 1), dt), torch.full((1, 1, 1), rate)]
    tensors += [torch.ones(1, 1, time, 1), torch.ones(1, 1, time, 1)]
    y = selective_scan(*(tensor.to(device) for tensor in tensors), backend=backend).cpu().flatten()
    a = math.exp(dt * rate)
    expected = torch.tensor([dt * (1 - a**t) / (1 - a) for t in range(1, time + 1)])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=0)


@needs_numba
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
def test_torch_compile_takes_it_whole():
    inputs = {name: tensor.float().requires_grad_() for name, tensor in make_inputs(channels=33).items()}

    def scan(**tensors):
        return selective_scan(**tensors, dt_softplus=True).sin()

    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    results = [(y, *torch.autograd.grad(y.sum(), list(inputs.values()))) for y in (scan(**inputs), compiled(**inputs))]
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@every_backend
def test_strided_views_are_as_good_as_copies(device, backend):
    """What a model hands over: dt, B and C as slices of one projection, x transposed."""
    inputs = {name: tensor.float().to(device) for name, tensor in make_inputs(time=50, channels=8).items()}
    packed = torch.cat([inputs[name] for name in ("dt", "B", "C")], dim=-1)
    views = dict(zip(("dt", "B", "C"), packed.split([8, 4, 4], dim=-1), strict=True))
    views["x"] = inputs["x"].transpose(2, 3).contiguous().transpose(2, 3)
    expected = selective_scan(**inputs, dt_softplus=True, backend=backend)
    assert torch.equal(selective_scan(**(inputs | views), dt_softplus=True, backend=backend), expected)


def test_the_fastest_backend_is_the_default():
    assert available_backends()[0] == ("numba" if "numba" in available_backends() else "chunked")
    inputs = make_inputs()
    chosen = selective_scan(**inputs, dt_softplus=True)
    assert torch.equal(chosen, selective_scan(**inputs, dt_softplus=True, backend=available_backends()[0]))


def test_a_backend_that_cannot_serve_is_passed_over_or_refused(monkeypatch):
    monkeypatch.setattr(selective_scan_numba, "HAS_NUMBA", False)
    inputs = make_inputs()
    assert "numba" not in available_backends()
    with pytest.raises(ValueError, match="'numba' cannot serve this input: numba is not installed"):
        selective_scan(**inputs, backend="numba")
    expected = selective_scan(**inputs, dt_softplus=True, backend="chunked")
    assert torch.equal(selective_scan(**inputs, dt_softplus=True), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'; expected one of reference, chunked, numba, triton, mamba_ssm"),
        ({"x": torch.zeros(2, 2, 5)}, r"x is \(2, 2, 5\); expected \[1 or 2 directions"),
        ({"x": torch.zeros(3, 2, 37, 5)}, "expected .1 or 2 directions"),
        ({"x": torch.zeros(2, 2, 0, 5)}, "none of them 0"),
        ({"dt": torch.zeros(2, 2, 36, 5)}, r"dt is \(2, 2, 36, 5\); expected \(2, 2, 37, 5\)"),
        (
            {"dt": torch.zeros(2, 2, 37, 3), "dt_weight": torch.zeros(2, 2, 5)},
            r"dt_weight is .*; expected \(2, 3, 5\)",
        ),
        ({"A": torch.zeros(2, 6, 4)}, r"A is \(2, 6, 4\); expected \[2 directions, 5 channels, d_state\]"),
        ({"A": torch.full((2, 5, 4), math.nan)}, "A lies between nan and nan; expected finite decay rates"),
        ({"A": torch.full((2, 5, 4), -math.inf)}, "expected finite decay rates"),
        ({"A": torch.ones(2, 5, 4)}, "zero or negative"),
        ({"B": torch.zeros(2, 2, 37, 3)}, r"B is \(2, 2, 37, 3\); expected \(2, 2, 37, 4\)"),
        ({"C": torch.zeros(1, 2, 37, 4)}, r"C is \(1, 2, 37, 4\)"),
        ({"D": torch.zeros(5)}, r"D is \(5,\); expected \(2, 5\)"),
        ({"dt_bias": torch.zeros(2, 1)}, r"dt_bias is \(2, 1\)"),
        ({"gate": torch.zeros(2, 37, 6)}, r"gate is \(2, 37, 6\); expected \(2, 37, 5\)"),
        ({"mask": torch.ones(2, 36, dtype=torch.bool)}, r"mask is \(2, 36\); expected \(2, 37\)"),
        ({"mask": torch.ones(2, 37)}, "mask is torch.float32; expected torch.bool"),
        ({"x": torch.zeros(2, 2, 37, 5, dtype=torch.int64)}, "x is torch.int64; expected float16"),
        ({"B": torch.zeros(2, 2, 37, 4, device="meta")}, "B is on meta; expected cpu"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**(make_inputs() | changes))


@needs_numba
def test_a_copy_loaded_as_remote_code_leaves_the_operators_alone():
    inputs = {name: tensor.float() for name, tensor in make_inputs().items()}
    expected = selective_scan(**inputs, dt_softplus=True, backend="numba")
    for _ in range(2):  # transformers runs a module again when its file has changed
        place = importlib.util.spec_from_file_location("hf_ecgmamba.remote_copy", selective_scan_numba.__file__)
        copy = importlib.util.module_from_spec(place)
        place.loader.exec_module(copy)
        assert copy._scan._qualname != selective_scan_numba._scan._qualname
        assert torch.equal(copy.selective_scan_numba(**inputs, dt_softplus=True), expected)
        assert torch.equal(selective_scan(**inputs, dt_softplus=True, backend="numba"), expected)
