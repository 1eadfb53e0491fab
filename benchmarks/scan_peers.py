"""Other people's selective scans on a CPU, beside ours in benchmarks/selective_scan.py, where they are installed.

Each takes x and dt [2, batch, time, channels], A [2, channels, d_state], B and C [2, batch, time, d_state], D and
dt_bias [2, channels], and returns y like x. None knows a second direction: it is a second call on flipped tensors.

    pip install --no-deps mambapy==1.2.0 xllamacpp
"""

import ctypes
import importlib.util

import torch
from torch.nn import functional as F


def in_both_directions(scan):
    def both(x, dt, A, B, C, D, dt_bias):
        y = []
        for direction in (0, 1):
            tensors = [t[direction].flip(1) if direction else t[direction] for t in (x, dt, B, C)]
            y.append(scan(tensors[0], tensors[1], A[direction], *tensors[2:], D[direction], dt_bias[direction]))
        return torch.stack((y[0], y[1].flip(1)))

    return both


def _decays_and_drives(x, dt, A, B, dt_bias):
    dt = F.softplus(dt + dt_bias)
    return torch.exp(dt.unsqueeze(-1) * A), (dt * x).unsqueeze(-1) * B.unsqueeze(2)


@in_both_directions
def by_mambapy(x, dt, A, B, C, D, dt_bias):
    """mambapy's parallel scan, which keeps all states."""
    from mambapy.pscan import pscan

    states = pscan(*_decays_and_drives(x, dt, A, B, dt_bias))
    return (states @ C.unsqueeze(-1)).squeeze(-1) + D * x


@in_both_directions
def by_associative_scan(x, dt, A, B, C, D, dt_bias):
    """torch's higher-order operator, as transformers uses it."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    elements = _decays_and_drives(x, dt, A, B, dt_bias)
    _, states = associative_scan(combine, elements, dim=1, combine_mode="generic")
    return (states @ C.unsqueeze(-1)).squeeze(-1) + D * x


@in_both_directions
def by_ggml(x, dt, A, B, C, D, dt_bias):
    """llama.cpp's operator, called in xllamacpp's library; forward only. It adds the bias, but not D, by itself."""
    library = _ggml()
    (batch, time, channels), d_state = x.shape, A.shape[1]
    size = 4 * (4 * x.numel() + 2 * B.numel() + 3 * batch * channels * d_state) + 2**20
    context = library.ggml_init(_Parameters(size, None, False))

    def new(tensor, *shape):
        dims = (ctypes.c_int64 * 4)(*shape, *[1] * (4 - len(shape)))
        kind = 26 if tensor.dtype == torch.int32 else 0  # GGML_TYPE_I32, GGML_TYPE_F32
        made, tensor = library.ggml_new_tensor(context, kind, len(shape), dims), tensor.contiguous()
        ctypes.memmove(library.ggml_get_data(made), tensor.data_ptr(), tensor.nbytes)
        return made

    states = new(torch.zeros(batch, channels, 1, d_state), d_state, 1, channels, batch)
    made = library.ggml_ssm_scan(
        context, states, new(x, 1, channels, time, batch), new(dt + dt_bias, channels, time, batch),
        new(A, d_state, channels), new(B, d_state, 1, time, batch), new(C, d_state, 1, time, batch),
        new(torch.arange(batch, dtype=torch.int32), batch), 1,
    )  # fmt: skip
    graph = library.ggml_new_graph(context)
    library.ggml_build_forward_expand(graph, made)
    library.ggml_graph_compute_with_ctx(context, graph, torch.get_num_threads())
    y = torch.empty(batch, time, channels)
    ctypes.memmove(y.data_ptr(), library.ggml_get_data(made), y.nbytes)
    library.ggml_free(context)
    return y + D * x


class _Parameters(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def _ggml():
    import xllamacpp.xllamacpp as module

    library, pointer = ctypes.CDLL(module.__file__), ctypes.c_void_p
    for name, kinds, result in (
        ("ggml_init", [_Parameters], pointer),
        ("ggml_new_tensor", [pointer, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)], pointer),
        ("ggml_get_data", [pointer], pointer),
        ("ggml_ssm_scan", [pointer] * 8 + [ctypes.c_int64], pointer),
        ("ggml_new_graph", [pointer], pointer),
        ("ggml_build_forward_expand", [pointer, pointer], None),
        ("ggml_graph_compute_with_ctx", [pointer, pointer, ctypes.c_int], ctypes.c_int),
        ("ggml_free", [pointer], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = kinds, result
    return library


def installed_peers():
    """name: (the scan, whether it has gradients)"""
    peers = {"torch's associative_scan": (by_associative_scan, True)}
    if importlib.util.find_spec("mambapy"):
        peers["mambapy"] = (by_mambapy, True)
    if importlib.util.find_spec("xllamacpp"):
        peers["ggml (xllamacpp)"] = (by_ggml, False)
    return peers
