"""Vectors of numbers for kernels that numba compiles, and the threads that run them.

Whether LLVM would vectorise a loop over channels depends on its version and its mood; so a vector of LANES numbers is
a type of its own here, and kernels compute with it as with a number. A kernel is a plain Python function of one
argument, a pointer to its job: whole numbers and addresses, which `unpack` takes apart. It runs on every thread and
asks for one task after another (`next_task`), so that a busy core gets fewer of them.

The functions below are what kernels may call. numba is handed them, and the kernels, at first use: importing this
file is cheap and works without numba. The machine code is kept on disk.
"""

import ctypes
import functools
import hashlib
import importlib.util
import math
import operator
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

HAS_NUMBA = importlib.util.find_spec("numba") is not None
# numbers in one vector: two registers of AVX-512, four of AVX2, eight of NEON
LANES = 32
LOG2_E = math.log2(math.e)


def unpack(job, sizes, arrays):
    """(whole numbers, pointers to numbers): what `run_tasks` was given, as the two named tuples of these classes."""


def next_task(job):
    """The number of a task that no thread has taken yet, or -1 where none is left."""


def scratch(array, size):
    """A new array of that many numbers, of the kind in `array`, that starts with a cache line."""


def read(array, index):
    """The vector array[index : index + LANES]."""


def write(array, index, vector):
    """array[index : index + LANES] = vector."""


def stream(array, index, vector):
    """As `write`, past the caches, for a place that starts with a cache line."""


def prefetch(array, index):
    """Asks for array[index : index + LANES], so that it is in the second-level cache when it is read or written. The
    index may lie beyond the array's ends."""


def fill(array, number):
    """A vector of LANES times `number`, of the kind of numbers in `array`."""


def total(vector):
    """The sum of the vector's numbers, in an order fixed when compiled."""


def maximum(left, right):
    """Lane by lane; NaN on the left stays."""


def where_positive(condition, positive, other):
    """Lane by lane."""


def power_of_two(exponent):
    """(scale, excess) with 2**exponent = scale (1 + excess), scale the nearest power of two.

    Near 1 the excess keeps digits that their product would round away. Exponents below those of normal numbers count
    as the smallest; above the largest the result is meaningless.
    """


def log1p(x):
    """log(1 + x) for x in [0, 1]."""


_to_be_compiled = []


def jitable(function):
    """Lets kernels call a function that is written as they are."""
    _to_be_compiled.append(function)
    return function


@jitable
def write_output(array, index, vector, streams):
    """As `write`; where it `streams`, past the caches: what is overwritten need not be read first. A large tensor's
    beginning would have left the caches before anyone read it."""
    if streams:
        stream(array, index, vector)
    else:
        write(array, index, vector)


@jitable
def sigmoid(value):
    """(1 / (1 + exp(-value)), exp(-|value|))."""
    scale, excess = power_of_two(maximum(value, 0.0 - value) * -LOG2_E)
    small = scale + scale * excess
    # 1 / (1 + small) by Newton's iteration from a straight line: cheaper than a division
    whole = 1.0 + small
    inverse = 24 / 17 - 8 / 17 * whole
    for _ in range(4):
        inverse = inverse + inverse * (1.0 - whole * inverse)
    tail = small * inverse
    return where_positive(value, 1.0 - tail, tail), small


@jitable
def softplus(value):
    """(softplus(value), its derivative)."""
    slope, small = sigmoid(value)
    return maximum(value, 0.0) + log1p(small), slope


@jitable
def silu(value):
    """(value sigmoid(value), its derivative)."""
    slope, _ = sigmoid(value)
    result = value * slope
    return result, slope + result * (1.0 - slope)


@jitable
def gelu(value):
    """value Φ(value), in float32's digits: Φ beyond |value| is exp(-value² / 2) times a polynomial in
    1 / (1 + 0.2325 |value|), fitted to a relative error of 1e-7."""
    size = maximum(value, 0.0 - value)
    scale, excess = power_of_two(size * size * (-0.5 * LOG2_E))
    t = 1.0 / (1.0 + 0.2325 * size)
    series = 0.24229141694101902 - 0.06987517145236974 * t
    series = series * t - 0.19454622671342547
    series = series * t + 0.22038120614317336
    series = series * t + 0.015472215682006112
    series = series * t + 0.10263111581456262
    series = series * t + 0.09078009317622529
    series = series * t + 0.0928653195156776
    tail = (scale + scale * excess) * (series * t)
    return value * where_positive(value, 1.0 - tail, tail)


def as_rows(tensor):
    """A tensor whose rows (its last dimension) lie at equal distances in memory: itself, where it is one."""
    distance, is_regular = tensor.stride(-2), tensor.stride(-1) == 1
    for size, stride in zip(reversed(tensor.shape[1:-1]), reversed(tensor.stride()[:-2]), strict=True):
        distance *= size
        is_regular = is_regular and stride == distance
    # not `contiguous`, which leaves the stride of a dimension of one as it finds it
    return tensor if is_regular else tensor.clone(memory_format=torch.contiguous_format)


def kernel_dtype(tensor):
    """What kernels compute with where this tensor comes in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def pad_channels(tensor):
    """A tensor with zeros that fill up the last vector of channels: itself, where the vectors are whole."""
    missing = -tensor.shape[-1] % LANES
    return F.pad(tensor, (0, missing)) if missing else tensor


def shall_stream(output):
    """Whether this tensor, of whole vectors, is too large for the caches, so that `write_output` shall stream."""
    return output.nbytes > 2**25


def runs_directly(*tensors):
    """Whether nobody looks on who needs an operator of torch to look at: no gradient, no graph that is being made.
    Kernels may then be called without one, which saves a batch of one recording a tenth of its time."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(tensor is None or type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)


def operator_name(module, name):
    """A name for a custom operator that nobody has. Copies of this package live side by side where models were loaded
    as remote code, and torch frees an operator that is defined anew, in use or not."""
    namespace = re.sub(r"\W", "_", module)
    while hasattr(getattr(torch.ops, namespace), name):
        namespace += "_"
    return f"{namespace}::{name}"


def run_tasks(kernel, dtype, num_tasks, sizes, arrays):
    """Runs a kernel's tasks on as many threads as torch would use.

    Args:
        kernel (`Callable`): calls `unpack(job, type(sizes), type(arrays))`.
        dtype (`torch.dtype`): float32 or float64, that of all arrays.
        sizes (`NamedTuple` of `int`)
        arrays (`NamedTuple` of `torch.Tensor`): the kernel gets the address of each one's first number, or 0 for None.
    """
    compiled = _compile(kernel, dtype)
    addresses = [0 if array is None else array.data_ptr() for array in arrays]
    job = np.array([0, num_tasks, *sizes, *addresses], dtype=np.int64)
    is_small = sum(array.numel() for array in arrays if array is not None) < _WORTH_A_THREAD
    num_threads = 1 if is_small else min(torch.get_num_threads(), num_tasks)
    pointer = job.ctypes.data
    if num_threads > 1 and _parallel_region is not None and not _lost_threads:
        _parallel_region(compiled.address, pointer, num_threads, 0)
        return
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    futures = [_pool(os.getpid(), num_threads).submit(run, pointer) for _ in range(num_threads - 1)]
    run(pointer)
    for future in futures:
        future.result()


# torch, too, keeps to one thread below as many numbers
_WORTH_A_THREAD = 2**15


def _find_parallel_region():
    """The entry into torch's own OpenMP threads, or None where torch has none by this name.

    After an operation of torch its threads spin for milliseconds in wait for the next one. Other threads would have to
    share the cores with them; and these start at once.
    """
    try:
        region = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    region.argtypes, region.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return region


_parallel_region = _find_parallel_region()
# OpenMP's threads do not survive a fork, and a child process would wait for its parent's for ever
_lost_threads = False


def _look_for_threads():
    global _lost_threads
    _lost_threads = not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) > 1


def _keep_threads():
    global _lost_threads
    _lost_threads = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_look_for_threads, after_in_parent=_keep_threads)


@functools.cache
def _pool(process, num_threads):
    """Python's threads do not survive a fork either: the child process has a pool of its own."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="hf_ecgmamba")


_compiling = threading.Lock()


def _compile(kernel, dtype):
    """The kernel as machine code, from the disk where an earlier process left it there."""
    with _compiling:
        return _compile_once(kernel, dtype)


@functools.cache
def _compile_once(kernel, dtype):
    import numba

    _register()
    while _to_be_compiled:
        numba.extending.register_jitable(_to_be_compiled.pop())
    element = numba.float64 if dtype == torch.float64 else numba.float32
    signature, options = numba.void(numba.types.CPointer(element)), {"error_model": "numpy"}
    # numba looks at the date of the kernel's own file only; this one is part of the machine code, too
    kernel.__qualname__ = f"{kernel.__name__}_{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    try:
        return numba.cfunc(signature, cache=True, **options)(kernel)
    except RuntimeError as error:
        logger.warning_once(f"every process compiles {kernel.__name__} anew, for {error}")
        return numba.cfunc(signature, **options)(kernel)


@functools.cache
def _register():
    """Tells numba of the vector, and what the functions above do to it."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, models, overload, register_model
    from numba.np.numpy_support import as_dtype

    class Vector(types.Type):
        def __init__(self, element):
            self.element = element
            super().__init__(name=f"Vector({element})")

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, vector):
            super().__init__(manager, vector, ir.VectorType(manager[vector.element].get_value_type(), LANES))

    # numba wants signatures spelled out
    forwarding = {
        1: lambda made: lambda a: lambda a: made(a),
        2: lambda made: lambda a, b: lambda a, b: made(a, b),
        3: lambda made: lambda a, b, c: lambda a, b, c: made(a, b, c),
    }

    def implements(function):
        """The decorated one, in the form of numba's intrinsics, says what `function` returns and how it is made."""

        def decorate(definition):
            made = intrinsic(definition)
            num_arguments = definition.__code__.co_argcount - 1
            overload(function)(forwarding[num_arguments](made))

        return decorate

    def constant(like, value):
        return ir.Constant(like.type, [value] * LANES)

    def broadcast(context, builder, vector, kind, value):
        """A number of any kind as the vector of that kind; a vector as it is."""
        if isinstance(kind, Vector):
            return value
        value = context.cast(builder, value, kind, vector.element)
        empty = ir.Constant(context.get_value_type(vector), ir.Undefined)
        first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    def as_vector(context, builder, kinds, arguments):
        """Where arguments[0], an array or a pointer, has its number arguments[1], as a pointer to a vector."""
        array, index = arguments[:2]
        if isinstance(kinds[0], types.Array):
            array = context.make_array(kinds[0])(context, builder, array).data
        pointer = builder.gep(array, [index])
        return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, LANES).as_pointer())

    def as_table(builder, job):
        return builder.bitcast(job, ir.IntType(64).as_pointer())

    @implements(unpack)
    def unpack_job(typing, job, sizes, arrays):
        sizes_class, arrays_class = sizes.instance_class, arrays.instance_class
        n, m = len(sizes_class._fields), len(arrays_class._fields)
        kinds = types.NamedUniTuple(types.int64, n, sizes_class), types.NamedUniTuple(job, m, arrays_class)
        result = types.Tuple(kinds)

        def generate(context, builder, signature, arguments):
            table = as_table(builder, arguments[0])
            # the two numbers of `next_task` come first
            numbers = [builder.load(cgutils.gep_inbounds(builder, table, i)) for i in range(2, 2 + n + m)]
            pointers = [builder.inttoptr(number, arguments[0].type) for number in numbers[n:]]
            values = zip(signature.return_type, (numbers[:n], pointers), strict=True)
            parts = [context.make_tuple(builder, kind, part) for kind, part in values]
            return context.make_tuple(builder, signature.return_type, parts)

        return result(job, sizes, arrays), generate

    @implements(next_task)
    def take_task(typing, job):
        def generate(context, builder, signature, arguments):
            table = as_table(builder, arguments[0])
            task = builder.atomic_rmw("add", table, ir.Constant(ir.IntType(64), 1), "monotonic")
            num_tasks = builder.load(cgutils.gep_inbounds(builder, table, 1))
            none_left = ir.Constant(ir.IntType(64), -1)
            return builder.select(builder.icmp_signed("<", task, num_tasks), task, none_left)

        return types.int64(job), generate

    @overload(scratch)
    def allocate(array, size):
        number, size_of_number = as_dtype(array.dtype).type, array.dtype.bitwidth // 8

        def aligned(array, size):
            buffer = np.empty(size + 64 // size_of_number, number)
            start = -buffer.ctypes.data % 64 // size_of_number
            return buffer[start : start + size]

        return aligned

    @implements(read)
    def read_vector(typing, array, index):
        def generate(context, builder, signature, arguments):
            pointer = as_vector(context, builder, signature.args, arguments)
            return builder.load(pointer, align=array.dtype.bitwidth // 8)

        return Vector(array.dtype)(array, index), generate

    @implements(write)
    def write_vector(typing, array, index, vector):
        def generate(context, builder, signature, arguments):
            pointer = as_vector(context, builder, signature.args, arguments)
            builder.store(arguments[2], pointer, align=vector.element.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, index, vector), generate

    @implements(stream)
    def stream_vector(typing, array, index, vector):
        def generate(context, builder, signature, arguments):
            pointer = as_vector(context, builder, signature.args, arguments)
            store = builder.store(arguments[2], pointer, align=64)
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.void(array, index, vector), generate

    @implements(prefetch)
    def prefetch_vector(typing, array, index):
        def generate(context, builder, signature, arguments):
            byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            start = builder.bitcast(as_vector(context, builder, signature.args, arguments), byte)
            for offset in range(0, LANES * array.dtype.bitwidth // 8, 64):
                line = builder.gep(start, [ir.Constant(flag, offset)])
                builder.call(function, [line, ir.Constant(flag, 0), ir.Constant(flag, 2), ir.Constant(flag, 1)])
            return context.get_dummy_value()

        return types.void(array, index), generate

    @implements(fill)
    def fill_vector(typing, array, number):
        vector = Vector(array.dtype)

        def generate(context, builder, signature, arguments):
            return broadcast(context, builder, vector, signature.args[1], arguments[1])

        return vector(array, number), generate

    @implements(total)
    def total_of_vector(typing, vector):
        def generate(context, builder, signature, arguments):
            kind, element = arguments[0].type, arguments[0].type.element
            name = f"llvm.vector.reduce.fadd.v{LANES}f{vector.element.bitwidth}"
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(element, [element, kind]), name
            )
            return builder.call(function, [ir.Constant(element, -0.0), arguments[0]], fastmath=("reassoc",))

        return vector.element(vector), generate

    @implements(maximum)
    def maximum_of_vectors(typing, left, right):
        def generate(context, builder, signature, arguments):
            pair = arguments[0], broadcast(context, builder, left, signature.args[1], arguments[1])
            return builder.select(builder.fcmp_unordered(">", *pair), *pair)

        return left(left, right), generate

    @implements(where_positive)
    def choose_lanes(typing, condition, positive, other):
        def generate(context, builder, signature, arguments):
            return builder.select(builder.fcmp_ordered(">", arguments[0], constant(arguments[0], 0.0)), *arguments[1:])

        return positive(condition, positive, other), generate

    def polynomial(builder, x, coefficients):
        result = constant(x, coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            product = builder.fmul(result, x, flags=("contract",))
            result = builder.fadd(product, constant(x, coefficient), flags=("contract",))
        return result

    @implements(power_of_two)
    def power_of_two_by_polynomial(typing, vector):
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
            smallest = constant(exponent, 1.0 - largest)
            exponent = builder.select(builder.fcmp_unordered(">", exponent, smallest), exponent, smallest)
            # a number this large has no fraction: adding it rounds to an integer, which is then found in the lowest
            # bits, together with the bias of a floating-point exponent
            rounder = constant(exponent, 1.5 * 2.0**digits + largest)
            rounded = builder.fadd(exponent, rounder)
            f = builder.fsub(exponent, builder.fsub(rounded, rounder))
            excess = builder.fmul(f, polynomial(builder, f, coefficients))
            integers = ir.VectorType(ir.IntType(vector.element.bitwidth), LANES)
            bits = builder.shl(builder.bitcast(rounded, integers), ir.Constant(integers, [digits] * LANES))
            return context.make_tuple(builder, signature.return_type, (builder.bitcast(bits, exponent.type), excess))

        return types.UniTuple(vector, 2)(vector), generate

    @implements(log1p)
    def log1p_by_polynomial(typing, vector):
        double = vector.element == types.float64
        # log(1 + x) / x on [0, 1], fitted at Chebyshev's points: a relative error of 1.2e-7, in float32
        coefficients = [0.999999995, -0.499998926, 0.333297105, -0.249516163, 0.196632743, -0.152696671]
        coefficients += [0.105436238, -0.0563736132, 0.0195425274, -0.00317605705]

        def generate(context, builder, signature, arguments):
            (x,) = arguments
            if double:  # 2 artanh(s), s = x / (2 + x) up to 1/3, as a series in s²
                s = builder.fdiv(x, builder.fadd(x, constant(x, 2.0)))
                return builder.fmul(s, polynomial(builder, builder.fmul(s, s), [2 / (2 * k + 1) for k in range(17)]))
            return builder.fmul(x, polynomial(builder, x, coefficients))  # cheaper than a division

        return vector(vector), generate

    def arithmetic(operation, instruction):
        @intrinsic
        def apply(typing, left, right):
            vector = left if isinstance(left, Vector) else right

            def generate(context, builder, signature, arguments):
                pairs = zip(signature.args, arguments, strict=True)
                operands = [broadcast(context, builder, vector, kind, value) for kind, value in pairs]
                return getattr(builder, instruction)(*operands, flags=("contract",))

            return vector(left, right), generate

        @overload(operation)
        def choose(left, right):
            kinds = [kind for kind in (left, right) if not isinstance(kind, Vector)]
            if len(kinds) < 2 and all(isinstance(kind, types.Number) for kind in kinds):
                return lambda left, right: apply(left, right)

    for operation, instruction in (
        (operator.add, "fadd"),
        (operator.sub, "fsub"),
        (operator.mul, "fmul"),
        (operator.truediv, "fdiv"),
    ):
        arithmetic(operation, instruction)
