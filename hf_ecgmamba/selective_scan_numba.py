"""The selective scan on the CPU, compiled by numba: one pass over time forwards, one backwards.

A task is one direction of one sample over a few channels. It walks along time with LANES channels at once in vector
registers and their states in the nearest cache. Direction 1 counts time downwards: nothing is flipped. The backward
pass starts from states that the forward pass left every SPAN steps and computes the others again. Tasks share no
output, and what several of them contribute to is summed afterwards in a fixed order: the result does not depend on
the number of threads.

The kernels at the end of the file are plain Python functions; `_compile` hands them to numba at first use, so that
importing this file is cheap and works without numba, and numba keeps the machine code on disk. Whether LLVM would
vectorise a loop over channels depends on its version and its mood; so a vector of LANES numbers is a type of its own
here (`_define_vectors`), and the kernels compute with it as with a number. numba's parallel loops are not used, for
their threading layers abort under concurrent calls or after a fork.
"""

import importlib.util
import itertools
import math
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

HAS_NUMBA = importlib.util.find_spec("numba") is not None
# channels in one vector: two registers of AVX-512, four of AVX2, eight of NEON
LANES = 32
# vectors of channels in one task: their gradients of B and C are added up before they are written
VECTORS = 2
# steps between the states that the forward pass keeps for the backward pass
SPAN = 32


def why_not_numba(x, A):
    """Why these kernels cannot scan x with A, or None."""
    if x.device.type != "cpu":
        return f"it runs on the CPU, and x is on {x.device}"
    if not HAS_NUMBA:
        return "numba is not installed (pip install numba)"
    return None


def selective_scan_numba(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None):
    """Arguments as in [`~selective_scan.selective_scan`], on the CPU."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in (x, dt, A, B, C, D, dt_bias)]
    learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _scan(*tensors, dt_softplus, mask, learns)[0].to(x.dtype)


# custom operators: torch.compile takes them as they are and looks no further


@torch.library.custom_op("hf_ecgmamba::selective_scan", mutates_args=())
def _scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    keep_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the state at the start of every span, which the backward pass needs (empty without keep_states)."""
    arrays = _as_arrays(x, dt, A, B, C, D, dt_bias, mask)
    y, saved = torch.empty(arrays[0].shape, dtype=x.dtype), x.new_empty(_shape_of_saved(x, A, keep_states))
    _run_tasks(_compile()[0], y.shape, dt_softplus, *arrays, y.numpy(), saved.numpy())
    return y[..., : x.shape[-1]].contiguous(), saved


@_scan.register_fake
def _(x, dt, A, B, C, D, dt_bias, dt_softplus, mask, keep_states):
    return x.new_empty(x.shape), x.new_empty(_shape_of_saved(x, A, keep_states))


@torch.library.custom_op("hf_ecgmamba::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    saved: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias, in the shapes of [`selective_scan`]'s arguments."""
    arrays = _as_arrays(x, dt, A, B, C, D, dt_bias, mask)
    directions, batch, time, channels = arrays[0].shape
    d_state, groups = A.shape[2], -(-channels // (LANES * VECTORS))
    dx, d_dt = (torch.empty(directions, batch, time, channels, dtype=x.dtype) for _ in range(2))
    # what each task adds to gradients that tasks have in common, summed below in a fixed order
    dA = torch.empty(directions, batch, d_state, channels, dtype=x.dtype)
    dD, d_bias = torch.empty(2, directions, batch, channels, dtype=x.dtype)
    dB, dC = torch.empty(2, groups, directions, batch, time, d_state, dtype=x.dtype)
    gradients = [tensor.numpy() for tensor in (dx, d_dt, dA, dB, dC, dD, d_bias)]
    dy = F.pad(dy, (0, channels - dy.shape[-1])).contiguous().numpy()
    _run_tasks(_compile()[1], dx.shape, dt_softplus, *arrays, saved.numpy(), dy, *gradients)
    gradients = (dx, d_dt, dA.sum(1), dD.sum(1), d_bias.sum(1))
    dx, d_dt, dA, dD, d_bias = (gradient[..., : x.shape[-1]].contiguous() for gradient in gradients)
    return dx, d_dt, dA.transpose(1, 2).contiguous(), dB.sum(0), dC.sum(0), dD, d_bias


@_scan_backward.register_fake
def _(dy, x, dt, A, B, C, D, dt_bias, dt_softplus, mask, saved):
    per_channel = A.shape[:2]
    return tuple(x.new_empty(shape) for shape in (x.shape, x.shape, A.shape, B.shape, C.shape, *(per_channel,) * 2))


def _keep_for_backward(ctx, inputs, output):
    x, dt, A, B, C, D, dt_bias, ctx.dt_softplus, mask, _ = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dy, _):
    x, dt, A, B, C, D, dt_bias, mask, saved = ctx.saved_tensors
    *gradients, dD, d_bias = _scan_backward(dy, x, dt, A, B, C, D, dt_bias, ctx.dt_softplus, mask, saved)
    return *gradients, None if D is None else dD, None if dt_bias is None else d_bias, None, None, None


_scan.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _shape_of_saved(x, A, keep_states):
    directions, batch, time, channels = x.shape
    spans = -(-time // SPAN) if keep_states else 0
    return directions, batch, spans, A.shape[2], -(-channels // LANES) * LANES


def _as_arrays(x, dt, A, B, C, D, dt_bias, mask):
    """The tensors as numpy arrays in C order, without a copy where they already are.

    Zeros fill up the last vector of channels and stand for what is absent; A becomes [directions, d_state, channels].
    """
    absent = x.new_zeros(A.shape[0], A.shape[1])
    tensors = [x, dt, A.transpose(1, 2), absent if D is None else D, absent if dt_bias is None else dt_bias]
    if x.shape[-1] % LANES:
        tensors = [F.pad(tensor, (0, -tensor.shape[-1] % LANES)) for tensor in tensors]
    mask = torch.empty(0, 0, dtype=torch.bool) if mask is None else mask
    return [tensor.detach().contiguous().numpy() for tensor in (*tensors, B, C, mask)]


def _run_tasks(kernel, shape, *arguments):
    """Runs `kernel` for every direction, sample and group of channels on as many threads as torch would use."""
    directions, batch, _, channels = shape
    tasks = list(itertools.product(range(directions), range(batch), range(0, channels, LANES * VECTORS)))
    queue = iter(tasks)

    def work():
        for task in queue:  # next() of a list's iterator is atomic: each task is taken once
            kernel(*task, *arguments)

    others = min(torch.get_num_threads(), len(tasks)) - 1
    futures = [_pool(os.getpid(), torch.get_num_threads()).submit(work) for _ in range(others)]
    work()
    for future in futures:
        future.result()


@cache
def _pool(process, num_threads):
    """Threads do not survive a fork: the child process has a pool of its own."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="selective_scan")


def _compile():
    """The kernels as machine code, from the disk where an earlier process left it there."""
    with _compiling:
        return _compile_once()


_compiling = threading.Lock()


@cache
def _compile_once():
    import numba

    global _softplus

    _define_vectors()
    options = {"nogil": True, "error_model": "numpy"}
    _softplus = numba.njit(**options)(_softplus)
    kernels = [numba.njit(**options)(kernel) for kernel in (_forward, _backward)]
    try:
        for kernel in kernels:
            kernel.enable_caching()
    except RuntimeError as error:
        logger.warning_once(f"selective_scan: every process compiles its kernels anew, for {error}")
    return kernels


def _define_vectors():
    """Gives the kernels their vectors: a numba type, its four operations, and the functions assigned at the end."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, models, overload, register_model

    global _read, _write, _fill, _sum, _maximum, _where_positive, _power, _log1p

    class Vector(types.Type):
        def __init__(self, element):
            self.element = element
            super().__init__(name=f"Vector({element})")

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, vector):
            super().__init__(manager, vector, ir.VectorType(manager[vector.element].get_value_type(), LANES))

    def is_vector(*kinds):
        return all(isinstance(kind, Vector) for kind in kinds)

    def constant(like, value):
        return ir.Constant(like.type, [value] * LANES)

    def address(context, builder, kinds, arguments):
        array = context.make_array(kinds[0])(context, builder, arguments[0])
        return builder.gep(array.data, [arguments[1]])

    @intrinsic
    def read(typing, array, index):
        def generate(context, builder, signature, arguments):
            vector = context.get_value_type(signature.return_type)
            pointer = builder.bitcast(address(context, builder, signature.args, arguments), vector.as_pointer())
            return builder.load(pointer, align=array.dtype.bitwidth // 8)

        return Vector(array.dtype)(array, index), generate

    @intrinsic
    def write(typing, array, index, vector):
        def generate(context, builder, signature, arguments):
            value = arguments[2]
            pointer = builder.bitcast(address(context, builder, signature.args, arguments), value.type.as_pointer())
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, index, vector), generate

    @intrinsic
    def fill(typing, number):
        def generate(context, builder, signature, arguments):
            empty = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
            first = builder.insert_element(empty, arguments[0], ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

        return Vector(number)(number), generate

    @intrinsic
    def total(typing, vector):
        def generate(context, builder, signature, arguments):
            kind, element = arguments[0].type, arguments[0].type.element
            name = f"llvm.vector.reduce.fadd.v{LANES}f{vector.element.bitwidth}"
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(element, [element, kind]), name
            )
            # in any order, fixed when compiled
            return builder.call(function, [ir.Constant(element, -0.0), arguments[0]], fastmath=("reassoc",))

        return vector.element(vector), generate

    @intrinsic
    def maximum(typing, left, right):
        def generate(context, builder, signature, arguments):
            return builder.select(builder.fcmp_unordered(">", *arguments), *arguments)  # NaN on the left stays

        return left(left, right), generate

    @intrinsic
    def where_positive(typing, condition, positive, other):
        def generate(context, builder, signature, arguments):
            return builder.select(builder.fcmp_ordered(">", arguments[0], constant(arguments[0], 0.0)), *arguments[1:])

        return positive(condition, positive, other), generate

    def polynomial(builder, x, coefficients):
        result = constant(x, coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            product = builder.fmul(result, x, flags=("contract",))
            result = builder.fadd(product, constant(x, coefficient), flags=("contract",))
        return result

    @intrinsic
    def power(typing, vector):
        double = vector.element == types.float64
        digits, largest = (52, 1023) if double else (23, 127)
        # (2**f - 1) / f on [-0.5, 0.5]: the series for float64; for float32 fitted, relative error of 2**f below 1e-7
        coefficients = (
            [math.log(2) ** k / math.factorial(k) for k in range(1, 15)]
            if double
            else [0.6931469775948133, 0.2402224207891221, 0.0555073373, 0.0096715130, 0.0013264727]
        )

        def generate(context, builder, signature, arguments):
            (exponent,) = arguments
            for sign, limit in ((">", 1 - largest), ("<", largest)):
                bound = constant(exponent, float(limit))
                exponent = builder.select(builder.fcmp_unordered(sign, exponent, bound), exponent, bound)
            # a number this large has no fraction: adding it rounds to an integer, found in the lowest bits
            rounder = constant(exponent, 1.5 * 2.0**digits)
            rounded = builder.fadd(exponent, rounder)
            f = builder.fsub(exponent, builder.fsub(rounded, rounder))
            excess = builder.fmul(f, polynomial(builder, f, coefficients))
            integers = ir.VectorType(ir.IntType(vector.element.bitwidth), LANES)
            bits = builder.bitcast(rounded, integers)
            bits = builder.shl(bits, ir.Constant(integers, [digits] * LANES))
            bits = builder.add(bits, ir.Constant(integers, [largest << digits] * LANES))
            return context.make_tuple(builder, signature.return_type, (builder.bitcast(bits, exponent.type), excess))

        return types.UniTuple(vector, 2)(vector), generate

    @intrinsic
    def log1p(typing, vector):
        # 2 artanh(s) / s as a series in s², s up to 1/3
        coefficients = [2 / (2 * k + 1) for k in range(17 if vector.element == types.float64 else 8)]

        def generate(context, builder, signature, arguments):
            (x,) = arguments
            s = builder.fdiv(x, builder.fadd(x, constant(x, 2.0)))
            return builder.fmul(s, polynomial(builder, builder.fmul(s, s), coefficients))

        return vector(vector), generate

    def arithmetic(operation, instruction):
        @intrinsic
        def apply(typing, left, right):
            def generate(context, builder, signature, arguments):
                return getattr(builder, instruction)(*arguments, flags=("contract",))

            return left(left, right), generate

        @overload(operation)
        def choose(left, right):
            if is_vector(left, right):
                return lambda left, right: apply(left, right)

    for operation, instruction in (
        (operator.add, "fadd"),
        (operator.sub, "fsub"),
        (operator.mul, "fmul"),
        (operator.truediv, "fdiv"),
    ):
        arithmetic(operation, instruction)
    _read, _write, _fill, _sum, _maximum = read, write, fill, total, maximum
    _where_positive, _power, _log1p = where_positive, power, log1p


def _softplus(value, zero, one, log2_e):
    """(softplus(value), its derivative)."""
    scale, excess = _power((zero - _maximum(value, zero - value)) * log2_e)
    small = scale + scale * excess  # exp(-|value|)
    slope = small / (one + small)
    return _maximum(value, zero) + _log1p(small), _where_positive(value, one - slope, slope)


def _forward(direction, sample, group, dt_softplus, x, dt, A, D, dt_bias, B, C, mask, y, saved):
    (_, batch, time, channels), d_state, number = x.shape, A.shape[1], x.dtype.type
    zero, one, log2_e = _fill(number(0)), _fill(number(1)), _fill(number(1.4426950408889634))
    states, rates = np.empty(d_state * LANES, x.dtype), np.empty(d_state * LANES, x.dtype)
    for first in range(group, min(group + LANES * VECTORS, channels), LANES):
        bias, skip = _read(dt_bias, direction * channels + first), _read(D, direction * channels + first)
        for s in range(d_state):
            _write(rates, s * LANES, _read(A, (direction * d_state + s) * channels + first) * log2_e)
            _write(states, s * LANES, zero)
        for i in range(time):
            if saved.shape[2] > 0 and i % SPAN == 0:
                row = ((direction * batch + sample) * saved.shape[2] + i // SPAN) * d_state
                for s in range(d_state):
                    _write(saved, (row + s) * channels + first, _read(states, s * LANES))
            t = time - 1 - i if direction == 1 else i
            row = (direction * batch + sample) * time + t
            here = row * channels + first
            if mask.size > 0 and not mask[sample, t]:
                _write(y, here, zero)
                continue
            signal, step = _read(x, here), _read(dt, here) + bias
            if dt_softplus:
                step, _ = _softplus(step, zero, one, log2_e)
            drive, output = step * signal, skip * signal
            for s in range(d_state):
                h = _read(states, s * LANES)
                scale, excess = _power(step * _read(rates, s * LANES))
                h = scale * (h + excess * h) + _fill(B[direction, sample, t, s]) * drive
                _write(states, s * LANES, h)
                output = output + _fill(C[direction, sample, t, s]) * h
            _write(y, here, output)


def _backward(
    direction,
    sample,
    group,
    dt_softplus,
    x,
    dt,
    A,
    D,
    dt_bias,
    B,
    C,
    mask,
    saved,
    dy,
    dx,
    d_dt,
    dA,
    dB,
    dC,
    dD,
    d_bias,
):
    (_, batch, time, channels), d_state, number = x.shape, A.shape[1], x.dtype.type
    zero, one, log2_e = _fill(number(0)), _fill(number(1)), _fill(number(1.4426950408889634))
    log_2, per_span = _fill(number(0.6931471805599453)), SPAN * LANES
    states, rates, d_states, d_rates = np.empty((4, d_state * LANES), x.dtype)
    steps, slopes, signals, drives = np.empty((4, per_span), x.dtype)
    decayed, scales, excesses = np.empty((3, per_span * d_state), x.dtype)
    plane, part = direction * batch + sample, group // (LANES * VECTORS)
    for first in range(group, min(group + LANES * VECTORS, channels), LANES):
        bias, skip = _read(dt_bias, direction * channels + first), _read(D, direction * channels + first)
        d_bias_sum, d_skip_sum = zero, zero
        for s in range(d_state):
            _write(rates, s * LANES, _read(A, (direction * d_state + s) * channels + first) * log2_e)
            _write(d_states, s * LANES, zero)
            _write(dA, (plane * d_state + s) * channels + first, zero)
        for span in range(saved.shape[2] - 1, -1, -1):
            start = span * SPAN
            count = min(SPAN, time - start)
            # forwards: the states again
            for s in range(d_state):
                _write(
                    states, s * LANES, _read(saved, ((plane * saved.shape[2] + span) * d_state + s) * channels + first)
                )
                _write(d_rates, s * LANES, zero)
            for j in range(count):
                t = time - 1 - start - j if direction == 1 else start + j
                if mask.size > 0 and not mask[sample, t]:
                    continue
                here = (plane * time + t) * channels + first
                signal, step, slope = _read(x, here), _read(dt, here) + bias, one
                if dt_softplus:
                    step, slope = _softplus(step, zero, one, log2_e)
                drive = step * signal
                _write(steps, j * LANES, step)
                _write(slopes, j * LANES, slope)
                _write(signals, j * LANES, signal)
                _write(drives, j * LANES, drive)
                for s in range(d_state):
                    h, at = _read(states, s * LANES), (j * d_state + s) * LANES
                    scale, excess = _power(step * _read(rates, s * LANES))
                    h = scale * (h + excess * h)
                    _write(scales, at, scale)
                    _write(excesses, at, excess)
                    _write(decayed, at, h)
                    _write(states, s * LANES, h + _fill(B[direction, sample, t, s]) * drive)
            # backwards: the gradients; d_states holds that of the state before the step, as far as it is known
            d_bias_span, d_skip_span = zero, zero
            for j in range(count - 1, -1, -1):
                t = time - 1 - start - j if direction == 1 else start + j
                here = (plane * time + t) * channels + first
                if mask.size > 0 and not mask[sample, t]:
                    _write(dx, here, zero)
                    _write(d_dt, here, zero)
                    for s in range(d_state):
                        dB[part, direction, sample, t, s] = 0
                        dC[part, direction, sample, t, s] = 0
                    continue
                step, signal, drive = _read(steps, j * LANES), _read(signals, j * LANES), _read(drives, j * LANES)
                d_output = _read(dy, here)
                d_step, d_drive, through_drive = zero, zero, _sum(d_output * drive)
                for s in range(d_state):
                    b, at = B[direction, sample, t, s], (j * d_state + s) * LANES
                    h, excess = _read(decayed, at), _read(excesses, at)
                    d_h = _read(d_states, s * LANES) + _fill(C[direction, sample, t, s]) * d_output
                    d_exponent = d_h * h
                    d_step = d_step + d_exponent * _read(rates, s * LANES)
                    d_drive = d_drive + _fill(b) * d_h
                    _write(d_rates, s * LANES, _read(d_rates, s * LANES) + d_exponent * step)
                    _write(d_states, s * LANES, _read(scales, at) * (d_h + excess * d_h))
                    d_b, d_c = _sum(d_h * drive), _sum(d_output * h) + b * through_drive
                    if first > group:
                        d_b += dB[part, direction, sample, t, s]
                        d_c += dC[part, direction, sample, t, s]
                    dB[part, direction, sample, t, s] = d_b
                    dC[part, direction, sample, t, s] = d_c
                d_step = (d_step * log_2 + d_drive * signal) * _read(slopes, j * LANES)
                _write(dx, here, d_drive * step + skip * d_output)
                _write(d_dt, here, d_step)
                d_bias_span, d_skip_span = d_bias_span + d_step, d_skip_span + d_output * signal
            # sums of sums lose fewer digits over long recordings
            d_bias_sum, d_skip_sum = d_bias_sum + d_bias_span, d_skip_sum + d_skip_span
            for s in range(d_state):
                at = (plane * d_state + s) * channels + first
                _write(dA, at, _read(dA, at) + _read(d_rates, s * LANES))
        _write(d_bias, plane * channels + first, d_bias_sum)
        _write(dD, plane * channels + first, d_skip_sum)
