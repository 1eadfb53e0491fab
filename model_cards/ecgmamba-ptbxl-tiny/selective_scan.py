"""The selective scan of a state-space model, in one direction or in both at once.

Mamba (arXiv 2312.00752, section 3.2): a state h [channels, d_state] walks along time,

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t        y_t = <C_t, h_t> + D x_t

where dt, B and C change with the input. [`selective_scan`] is the one entry; it chooses a backend that serves the
input, all of which compute the same thing. `reference` defines it; `chunked` is the fallback that runs everywhere.
"""

import math

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging

try:  # torch has no public name for it yet
    from torch._higher_order_ops.scan import scan as scan_operator
except ImportError:
    scan_operator = None

from .numba_vectors import kernel_dtype
from .selective_scan_mamba_ssm import selective_scan_mamba_ssm, why_not_mamba_ssm
from .selective_scan_numba import selective_scan_numba, why_not_numba
from .selective_scan_triton import selective_scan_triton, why_not_triton

logger = logging.get_logger(__name__)


def selective_scan(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    *,
    dt_weight=None,
    dt_bias=None,
    dt_softplus=False,
    gate=None,
    mask=None,
    backend=None,
):
    """
    Scans `x` along time; with two directions, index 0 runs from left to right and index 1 from right to left, each
    with its own dt, A, B, C, D. Nothing is flipped: step t of every tensor is the same moment. Differentiable in every
    tensor but `mask`; the backward pass recomputes the states.

    Args:
        x (`torch.Tensor` of shape `(directions, batch, time, channels)`): float16, bfloat16, float32 or float64;
            directions is 1 or 2. The state is float64 for float64, else float32.
        dt (`torch.Tensor` of shape `(directions, batch, time, channels)`): step sizes; they are to be positive after
            bias and softplus.
        A (`torch.Tensor` of shape `(directions, channels, d_state)`): decay rates, zero or negative.
        B (`torch.Tensor` of shape `(directions, batch, time, d_state)`): what the input writes into the state.
        C (`torch.Tensor` of shape `(directions, batch, time, d_state)`): what the output reads from the state.
        D (`torch.Tensor` of shape `(directions, channels)`, *optional*): the share of x that skips the state.
        dt_weight (`torch.Tensor` of shape `(directions, rank, channels)`, *optional*): where given, dt has the shape
            `(directions, batch, time, rank)`, and dt @ dt_weight takes its place.
        dt_bias (`torch.Tensor` of shape `(directions, channels)`, *optional*): added to dt.
        dt_softplus (`bool`, *optional*, defaults to `False`): whether dt, after its bias, goes through softplus.
        gate (`torch.Tensor` of shape `(batch, time, channels)`, *optional*): called z in Mamba; where given, the
            directions are summed and the sum is multiplied by SiLU(gate).
        mask (`torch.BoolTensor` of shape `(batch, time)`, *optional*): False where a step is padding; it leaves the
            state as it was, its y is 0, and no gradient flows from or to it.
        backend (`str`, *optional*): `reference`, `chunked`, `numba`, `triton` or `mamba_ssm`; by default the fastest
            that can serve the input. A graph that torch.export makes holds none of them, but torch's own operators.

    Returns:
        `torch.Tensor` of shape `(directions, batch, time, channels)`, with a gate `(batch, time, channels)`: y, in the
        dtype of x.

    Raises:
        ValueError: for an unknown backend, one that cannot serve this input, a shape, dtype or device that does not
            fit, or (where looking costs no synchronisation: on the CPU) an A that is positive or not finite.
    """
    _check(x, dt, A, B, C, D, dt_weight, dt_bias, gate, mask)
    exporting = torch.compiler.is_exporting() and scan_operator is not None
    backend = None if exporting else _choose_backend(x, A, backend)
    if backend == "numba":  # projects and gates within its kernels
        return selective_scan_numba(x, dt, A, B, C, D, dt_weight, dt_bias, dt_softplus, gate, mask)
    if dt_weight is not None:
        dt = torch.bmm(dt.flatten(1, 2), dt_weight.to(dt.dtype)).unflatten(1, x.shape[1:3])
    scan = selective_scan_exported if exporting else _BACKENDS[backend][0]
    y = scan(x, dt, A, B, C, D, dt_bias, dt_softplus, mask)
    return y if gate is None else y.sum(0) * F.silu(gate.to(y.dtype))


def available_backends(device="cpu", dtype=torch.float32, d_state=16):
    """Names of the backends that can serve such an input here, the one that would be chosen first."""
    x = torch.empty(2, 1, 1, 1, device=device, dtype=dtype)
    A = torch.empty(2, 1, d_state, device=device)
    preferred = _PREFERRED.get(x.device.type, _PREFERRED["other"])
    names = (*preferred, *(name for name in _BACKENDS if name not in preferred))
    return tuple(name for name in names if _BACKENDS[name][1](x, A) is None)


def _choose_backend(x, A, name):
    if name is not None:
        if name not in _BACKENDS:
            raise ValueError(f"backend is {name!r}; expected one of {', '.join(_BACKENDS)}, or None to choose")
        reason = _BACKENDS[name][1](x, A)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot serve this input: {reason}")
        return name
    for name in _PREFERRED.get(x.device.type, _PREFERRED["other"]):
        reason = _BACKENDS[name][1](x, A)
        if reason is None:
            return name
        logger.warning_once(f"selective_scan passes over the backend {name!r}: {reason}")


def _check(x, dt, A, B, C, D, dt_weight, dt_bias, gate, mask):
    if x.ndim != 4 or x.shape[0] not in (1, 2) or 0 in x.shape:
        raise ValueError(f"x is {tuple(x.shape)}; expected [1 or 2 directions, batch, time, channels], none of them 0")
    directions, batch, time, channels = x.shape
    if A.ndim != 3 or A.shape[:2] != (directions, channels) or A.shape[2] == 0:
        raise ValueError(f"A is {tuple(A.shape)}; expected [{directions} directions, {channels} channels, d_state]")
    rank = dt.shape[-1] if dt.ndim else 0
    per_step, per_channel = (directions, batch, time, A.shape[2]), (directions, channels)
    for name, tensor, shape in (
        ("x", x, x.shape),
        ("dt", dt, x.shape if dt_weight is None else (directions, batch, time, rank)),
        ("dt_weight", dt_weight, (directions, rank, channels)),
        ("A", A, A.shape),
        ("B", B, per_step),
        ("C", C, per_step),
        ("D", D, per_channel),
        ("dt_bias", dt_bias, per_channel),
        ("gate", gate, x.shape[1:]),
        ("mask", mask, (batch, time)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; expected {tuple(shape)} for these x and A")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {x.device}, where x is")
        if name == "mask":
            if tensor.dtype != torch.bool:
                raise ValueError(f"mask is {tensor.dtype}; expected torch.bool, False where a step is padding")
        elif tensor.dtype not in _FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; expected float16, bfloat16, float32 or float64")
    if A.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = A.detach().aminmax()
        if not (low > -math.inf and high <= 0):
            raise ValueError(f"A lies between {low:g} and {high:g}; expected finite decay rates, zero or negative")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _step_sizes(dt, dt_bias, dt_softplus, dtype):
    dt = dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)[:, None, None]
    return F.softplus(dt) if dt_softplus else dt


def _with_skip(y, signal, D, mask):
    """y with the share of the signal that skips the state, and zero where a step is padding."""
    if D is not None:
        y = y + D.to(y.dtype)[:, None, None] * signal
    return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)


def selective_scan_reference(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None):
    """The definition of correct: one step after another. Arguments as in [`selective_scan`]."""
    dtype = kernel_dtype(x)
    dt = _step_sizes(dt, dt_bias, dt_softplus, dtype)
    signal, A, B, C = (tensor.to(dtype) for tensor in (x, A, B, C))
    directions, batch, time, channels = x.shape
    y = []
    for direction in range(directions):
        h = signal.new_zeros(batch, channels, A.shape[-1])
        outputs = [None] * time
        # unbind, for the backward of an index would write a gradient as long as the recording at each step
        steps = [tensor[direction].unbind(1) for tensor in (signal, dt, B, C)]
        for t in range(time) if direction == 0 else reversed(range(time)):
            x_t, dt_t, B_t, C_t = (tensor[t] for tensor in steps)
            after = torch.exp(dt_t.unsqueeze(-1) * A[direction]) * h + (dt_t * x_t).unsqueeze(-1) * B_t.unsqueeze(1)
            h = after if mask is None else torch.where(mask[:, t, None, None], after, h)
            outputs[t] = (h * C_t.unsqueeze(1)).sum(-1)
        y.append(torch.stack(outputs, 1))
    return _with_skip(torch.stack(y), signal, D, mask).to(x.dtype)


def selective_scan_chunked(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None):
    """Plain torch on any device, parallel over chunks of time. Arguments as in [`selective_scan`].

    Time is cut into spans of side² steps. The states of one span exist at a time, in the backward pass too, which
    computes them again; across spans only the last state is kept.
    """
    dtype = kernel_dtype(x)
    dt = _step_sizes(dt, dt_bias, dt_softplus, dtype)
    signal, A, B, C = (tensor.to(dtype) for tensor in (x, A, B, C))
    if mask is not None:  # a step of size zero decays nothing and writes nothing
        dt, signal = (tensor.masked_fill(~mask.unsqueeze(-1), 0) for tensor in (dt, signal))
    directions, batch, time, channels = x.shape
    states_per_step = batch * channels * A.shape[-1]
    side = max(4, min(32, math.isqrt(_STATES_AT_ONCE // states_per_step), math.isqrt(time - 1) + 1))
    spans = [slice(start, min(start + side * side, time)) for start in range(0, time, side * side)]
    y = []
    for direction in range(directions):
        h = signal.new_zeros(batch, channels, A.shape[-1])
        outputs = [None] * len(spans)
        for i in range(len(spans)) if direction == 0 else reversed(range(len(spans))):
            inputs = [tensor[direction, :, spans[i]] for tensor in (signal, dt, B, C)]
            span = (*inputs, A[direction], h, side, direction == 1)
            if torch.is_grad_enabled():
                outputs[i], h = checkpoint(_scan_span, *span, use_reentrant=False, preserve_rng_state=False)
            else:
                outputs[i], h = _scan_span(*span)
        y.append(torch.cat(outputs, 1))
    return _with_skip(torch.stack(y), signal, D, mask).to(x.dtype)


# what the chunked scan holds in memory at once is a few times this many numbers
_STATES_AT_ONCE = 2**22


def _scan_span(x, dt, B, C, A, h, side, backwards):
    """Scans up to side² steps from the state h [batch, channels, d_state]; returns y and the state at the end.

    The span is cut into `side` chunks. All chunks take their first step at once, then their second, each from a state
    of zero; then the chunks are walked through, each handing on what it was handed, decayed, plus what it made.
    Exponents are never positive: nothing overflows, however large dt A is.
    """
    time = x.shape[1]
    # steps of size zero that fill up the last chunk change nothing
    x, dt, B, C = (F.pad(tensor, (0, 0, 0, side * side - time)).unflatten(1, (side, side)) for tensor in (x, dt, B, C))
    order = list(reversed(range(side))) if backwards else list(range(side))
    steps, written = dt.unbind(2), ((dt * x).unsqueeze(-1) * B.unsqueeze(-2)).unbind(2)
    whole, rest = (part.unbind(2) for part in _decay(dt, A))
    state, elapsed = torch.zeros_like(written[0]), torch.zeros_like(steps[0])
    states, since_start = [None] * side, [None] * side
    for step in order:
        state = _decay_and_add(state, whole[step], rest[step], written[step])
        elapsed = elapsed + steps[step]
        states[step], since_start[step] = state, elapsed
    states, (whole, rest) = torch.stack(states, 2), _decay(torch.stack(since_start, 2), A)
    handed, last = [None] * side, order[-1]
    for chunk in order:
        handed[chunk] = h
        h = _decay_and_add(h, whole[:, chunk, last], rest[:, chunk, last], states[:, chunk, last])
    states = _decay_and_add(torch.stack(handed, 1).unsqueeze(2), whole, rest, states)
    y = torch.matmul(states, C.unsqueeze(-1)).squeeze(-1)
    return y.flatten(1, 2)[:, :time], h


def _decay(dt, A):
    """exp(dt A) as (whole, rest) whose sum it is; whole is 1 near 1, else 0.

    float32 would round the decays of equal tiny steps to the same wrong side of the same number every time.
    """
    exponent = dt.unsqueeze(-1) * A
    is_near_one = exponent > -0.5
    return is_near_one.to(dt.dtype), torch.where(is_near_one, torch.expm1(exponent), torch.exp(exponent))


def _decay_and_add(state, whole, rest, written):
    return torch.addcmul(torch.addcmul(written, whole, state), rest, state)


def selective_scan_exported(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None):
    """As one operator over time, of which ONNX has its own, for graphs that leave torch. Arguments as in
    [`selective_scan`]; both directions are walked at once, the second one turned round."""
    dtype = kernel_dtype(x)
    dt = _step_sizes(dt, dt_bias, dt_softplus, dtype)
    signal, A, B, C = (tensor.to(dtype) for tensor in (x, A, B, C))
    if mask is not None:
        dt = dt * mask.unsqueeze(-1)  # a step of size zero decays nothing and writes nothing
    # time first, as the operator wants it, while the tensors are small
    turned = (torch.cat((tensor[:1], tensor[1:].flip(2))).permute(2, 0, 1, 3) for tensor in (dt, signal, B, C))
    dt, signal_of_step, B, C = turned
    decays = torch.exp(dt.unsqueeze(-1) * A[:, None])
    written = (dt * signal_of_step).unsqueeze(-1) * B.unsqueeze(-2)

    def step(state, inputs):
        decay, write, read = inputs
        state = decay * state + write
        return state, torch.matmul(state, read).squeeze(-1)

    _, y = scan_operator(step, torch.zeros_like(written[0]), (decays, written, C.unsqueeze(-1)), dim=0)
    y = y.permute(1, 2, 0, 3)
    return _with_skip(torch.cat((y[:1], y[1:].flip(2))), signal, D, mask).to(x.dtype)


def _always(x, A):
    return None


# name: (the scan, what keeps it from serving x and A)
_BACKENDS = {
    "reference": (selective_scan_reference, _always),
    "chunked": (selective_scan_chunked, _always),
    "numba": (selective_scan_numba, why_not_numba),
    "triton": (selective_scan_triton, why_not_triton),
    "mamba_ssm": (selective_scan_mamba_ssm, why_not_mamba_ssm),
}
# by device, the fastest first
_PREFERRED = {
    "cpu": ("numba", "chunked"),
    "cuda": ("triton", "mamba_ssm", "chunked"),
    "other": ("chunked",),
}
