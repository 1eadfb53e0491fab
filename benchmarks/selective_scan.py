"""The bidirectional selective scan, backend by backend, beside transformers' Mamba mixer and a transformer layer.

    python benchmarks/selective_scan.py [--lengths 250 1000 5000 65536] [--batches 1 16] [--limit 120] [--memory 8]

256 channels, 16 states, both directions; float32 on a CPU, bfloat16 (layers under autocast) on a CUDA GPU. A scan gets
x, dt, B and C ready made; a layer gets [batch, time, 256] and holds its projections, too. "two MambaMixers" is what
transformers offers for both directions: one mixer forwards, one on the flipped input. The transformer layer is torch's
TransformerEncoderLayer (4 heads, feed-forward 1024) by scaled_dot_product_attention; "as it comes" is the same layer
in evaluation mode, where torch takes a fast path that does not use it. "BiSSM layer's projections alone" is what would
be left of that layer if its convolution and scan took no time. "MambaModel" is transformers' own of four layers of 512
channels, as it comes and by `hf_ecgmamba.accelerate_mamba()`; peers are other people's scans, those that are installed
(benchmarks/scan_peers.py).

Time is that of a run in the best of blocks of at least a tenth of a second, over two seconds, after a warm-up (longer
runs are taken once): single short runs would slip through where others disturb the long ones. On a CPU every cell is a
process of its own, forked before torch has started a thread, and memory is the peak of resident memory above what was
there before the run. Freed memory stays with the process (glibc's mallopt), as in a program that has run for a while:
else every large tensor's first touch is charged to the kernel's zeroing of pages. A cell that passes `--limit` seconds
or would need more than `--memory` GiB is stopped, says so, and longer ones are not tried. Prints a Markdown table, and
below it the ratios that the project promises.
"""

import argparse
import ctypes
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads would be the only ones before the forks
import torch
import transformers
from torch import nn
from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer, MambaModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scan_peers import installed_peers

from hf_ecgmamba import EcgMambaConfig, accelerate_mamba
from hf_ecgmamba.modeling_ecgmamba import EcgMambaModel
from hf_ecgmamba.selective_scan import available_backends, selective_scan

WIDTH, STATES = 256, 16
MIXERS, LAYER, BLOCK, TRANSFORMER = "two MambaMixers", "BiSSM layer", "ECGMamba block", "transformer layer"
PROJECTIONS = "BiSSM layer's projections alone"
MODEL, ACCELERATED = "MambaModel of transformers", "MambaModel of transformers, accelerated"
AS_IT_COMES, SCAN = "transformer layer, as it comes", "scan: numba"
FORWARD, BACKWARD = "forward", "forward + backward"
BLOCK_SECONDS, LEAST_SECONDS = 0.1, 2


class TwoMixers(nn.Module):
    def __init__(self):
        super().__init__()
        config = MambaConfig(hidden_size=WIDTH, intermediate_size=WIDTH, state_size=STATES, num_hidden_layers=1)
        self.mixers = nn.ModuleList(MambaMixer(config, 0) for _ in range(2))

    def forward(self, x):
        return self.mixers[0](x) + self.mixers[1](x.flip(1)).flip(1)


class Projections(nn.Module):
    """What would be left of a BiSSM layer if its convolution and its scan took no time."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        x, _ = self.mixer.in_proj(x).chunk(2, dim=-1)
        steps = torch.bmm(x.reshape(1, -1, WIDTH).expand(2, -1, -1), self.mixer.x_proj)
        y = self.mixer.out_proj(x)
        y[:, 0] += steps[0, 0, :1]  # so that gradients flow to both
        return y


def build(contender, batch, length, device):
    """A function of no arguments that computes the contender's output, and the tensors that want gradients."""
    torch.manual_seed(0)
    if contender.startswith(("scan: ", "peer: ")):
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        x, dt = torch.randn(2, 2, batch, length, WIDTH, device=device, dtype=dtype)
        B, C = torch.randn(2, 2, batch, length, STATES, device=device, dtype=dtype)
        A = -torch.arange(1.0, STATES + 1, device=device).expand(2, WIDTH, STATES).contiguous()
        D, dt_bias = torch.ones(2, WIDTH, device=device), torch.full((2, WIDTH), -4.0, device=device)
        leaves, (kind, backend) = [x, dt, A, B, C, D, dt_bias], contender.split(": ")

        def compute():
            if kind == "peer":
                return installed_peers()[backend][0](*leaves)
            return selective_scan(*leaves[:6], dt_bias=leaves[6], dt_softplus=True, backend=backend)

        return compute, [leaf.requires_grad_() for leaf in leaves]
    if contender in (MODEL, ACCELERATED):
        if contender == ACCELERATED:
            accelerate_mamba()
        model = MambaModel(MambaConfig(vocab_size=1, hidden_size=256, state_size=STATES, num_hidden_layers=4))
        x = torch.randn(batch, length, 256, requires_grad=True)
        leaves = [x, *(parameter for name, parameter in model.named_parameters() if "embed" not in name)]
        return lambda: model(inputs_embeds=x, use_cache=False).last_hidden_state, leaves
    if contender == MIXERS:
        layer = TwoMixers()
    elif contender in (TRANSFORMER, AS_IT_COMES):
        torch.backends.mha.set_fastpath_enabled(contender == AS_IT_COMES)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True).eval()
    else:
        config = EcgMambaConfig(hidden_size=WIDTH, d_state=STATES, num_hidden_layers=1, hidden_dropout=0.0)
        block = EcgMambaModel(config).blocks[0]
        layer = {BLOCK: block, LAYER: block.mixer, PROJECTIONS: Projections(block.mixer)}[contender]
    layer, x = layer.to(device), torch.randn(batch, length, WIDTH, device=device, requires_grad=True)

    def compute():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return layer(x)

    return compute, [x, *layer.parameters()]


def step(compute, leaves, mode):
    if mode == FORWARD:
        with torch.no_grad():
            return compute()
    y = compute()
    return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)


def timed(compute, leaves, mode, device, runs=1):
    """Seconds of a run, the mean of as many."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        step(compute, leaves, mode)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs


def peak_memory(device, process="self"):
    """Peak bytes since `reset_peak_memory`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak_memory(device):
    """Returns the bytes in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory(device)


def measure(contender, mode, length, batch, device, report):
    """Reports the memory before, then (seconds, peak bytes above it), or the name of the error."""
    step(*build(contender, 1, 64, device), mode)  # compiles, and starts threads
    try:
        compute, leaves = build(contender, batch, length, device)
        before = reset_peak_memory(device)
        report(before)
        first = best = timed(compute, leaves, mode, device)
        peak, start, runs = peak_memory(device) - before, time.perf_counter(), math.ceil(BLOCK_SECONDS / first)
        while first < LEAST_SECONDS and time.perf_counter() - start < LEAST_SECONDS:
            best = min(best, timed(compute, leaves, mode, device, runs))
        report((best, peak))
    except (RuntimeError, MemoryError) as error:  # torch tells of memory that cannot be had by a plain RuntimeError
        if "memory" not in str(error).lower():
            raise
        report("memory")


def measure_in_a_process(cell, device, limit, memory):
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child():
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + memory,) * 2)
        if sys.platform == "linux":
            for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
                ctypes.CDLL(None).mallopt(option, 2**31 - 1)
        measure(*cell, device, sender.send)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sender.close()
    before, result, deadline = None, "memory", time.monotonic() + limit
    try:
        while receiver.poll(max(0, deadline - time.monotonic())):
            result = receiver.recv()
            if not isinstance(result, int):
                break
            before = result
        else:  # what it took so far is less than it needs
            result = "time" if before is None else ("time", peak_memory(device, process.pid) - before)
    except EOFError:
        result = "crash"
    process.kill()
    process.join()
    return result


def measure_here(cell, device):
    results = []
    measure(*cell, device, results.append)
    torch.cuda.empty_cache()
    return results[-1]


def show(result, limit, memory):
    """Time and memory as the table prints them."""
    if result is None:
        return "not tried", "not tried"
    if result == "memory":
        return "-", f"> {memory / 2**30:g} GiB"
    if isinstance(result, str):
        return f"no result ({result})", "-"
    seconds, peak = result
    at_least = seconds == "time"
    return (
        f"> {limit} s" if at_least else f"{seconds * 1e3:,.2f} ms",
        f"{'> ' if at_least else ''}{peak / 2**20:,.1f} MiB",
    )


def print_targets(results, limit, device):
    """Each promise: what was measured, what is required."""
    print("\n| target | measured | required | met |\n|---|---|---|---|")

    def seconds(contender, mode, length):
        """(seconds, whether they are only a lower bound)"""
        result = results.get((contender, mode, length, 1))
        if result is None or isinstance(result, str):
            return None
        return (limit, True) if result[0] == "time" else (result[0], False)

    def row(name, ratio, required, bound=False, at_most=False):
        if ratio is None:
            print(f"| {name} | not measured | {required:g} | - |")
            return
        met = ratio <= required if at_most else ratio >= required
        print(f"| {name} | {'> ' if bound else ''}{ratio:.2f} | {required:g} | {'yes' if met else 'no'} |")

    def faster(name, slow, fast, mode, length, required):
        slow, fast = seconds(slow, mode, length), seconds(fast, mode, length)
        if slow is None or fast is None or fast[1]:
            return row(name, None, required)
        return row(name, slow[0] / fast[0], required, bound=slow[1])

    if device == "cuda":
        for length in (1000, 5000, 65_536):
            name = f"triton vs two mamba_ssm calls, {BACKWARD}, {length} steps, times faster"
            faster(name, "scan: mamba_ssm", "scan: triton", BACKWARD, length, 1.3)
        took = seconds("scan: triton", FORWARD, 65_536)
        share = None if took is None else copy_bound_seconds(65_536) / took[0]
        row("triton, forward, 65536 steps, share of the copy-bandwidth bound", share, 0.6)
        return
    for ours in (SCAN, LAYER):
        faster(f"{ours} vs two MambaMixers, {FORWARD}, 1000 steps, times faster", MIXERS, ours, FORWARD, 1000, 20)
        faster(f"{ours} vs two MambaMixers, {BACKWARD}, 1000 steps", MIXERS, ours, BACKWARD, 1000, 15)
    for length, required in ((1000, 2), (5000, 15)):
        name = f"{LAYER} vs {AS_IT_COMES}, {FORWARD}, {length} tokens, times faster"
        faster(name, AS_IT_COMES, LAYER, FORWARD, length, required)
        for ours in (LAYER, BLOCK):
            for mode in (FORWARD, BACKWARD):
                name = f"{ours} vs transformer layer, {mode}, {length} tokens, times faster"
                faster(name, TRANSFORMER, ours, mode, length, required)
    theirs, ours = results.get((MIXERS, BACKWARD, 5000, 1)), results.get((LAYER, BACKWARD, 5000, 1))
    known = isinstance(theirs, tuple) and isinstance(ours, tuple)
    name = "peak memory, layer, forward + backward, 5000 steps, vs two MambaMixers, times less"
    row(name, theirs[1] / ours[1] if known else None, 10, bound=known and theirs[0] == "time")
    for contender in (SCAN, LAYER):
        for mode in (FORWARD, BACKWARD):
            short, long = seconds(contender, mode, 5000), seconds(contender, mode, 65_536)
            known = short is not None and long is not None and not (short[1] or long[1])
            name = f"{contender}, {mode}, growth of time from 5000 to 65536 steps, at most"
            row(name, long[0] / short[0] if known else None, 14, at_most=True)


def copy_bound_seconds(length):
    """How long this GPU takes to copy as many bytes as a forward scan of one recording must read and write."""
    needed = 2 * length * (3 * WIDTH + 2 * STATES) * 2  # x, dt and y; B and C; bfloat16
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), [], FORWARD, "cuda") for _ in range(10))
    print(f"\ncopy bandwidth {2 * source.numel() / best / 1e9:,.0f} GB/s (read + written)")
    return needed / (2 * source.numel() / best)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[250, 1000, 5000, 65_536])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--limit", type=float, default=120, help="seconds for one cell, warm-up included")
    parser.add_argument("--memory", type=float, default=8, help="GiB for one cell (CPU)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--contenders", nargs="+", help="only these rows, by the name that the table gives them")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device, memory = arguments.device, int(arguments.memory * 2**30)
    transformers.logging.set_verbosity_error()  # the mixer says that it falls back; here it is meant to

    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    print(
        f"{name}, {torch.get_num_threads()} threads; torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {WIDTH} channels, {STATES} states, "
        f"{'bfloat16' if device == 'cuda' else 'float32'}\n"
    )
    print("| what | pass | steps | batch | time | peak memory |\n|---|---|---|---|---|---|")
    scans = [f"scan: {name}" for name in available_backends(device)]
    forward_only = [f"peer: {name}" for name, (_, learns) in installed_peers().items() if not learns]
    if device == "cpu":
        scans += [*(f"peer: {name}" for name in installed_peers()), MODEL, ACCELERATED]
    results = {}
    for contender in arguments.contenders or (*scans, LAYER, PROJECTIONS, BLOCK, MIXERS, TRANSFORMER, AS_IT_COMES):
        for mode in (FORWARD,) if contender in forward_only else (FORWARD, BACKWARD):
            for batch in arguments.batches:
                stopped = False
                for length in sorted(arguments.lengths):
                    cell = (contender, mode, length, batch)
                    if stopped:
                        result = None
                    elif device == "cuda":
                        result = measure_here(cell, device)
                    else:
                        result = measure_in_a_process(cell, device, arguments.limit, memory)
                    results[cell] = result
                    stopped = not isinstance(result, tuple) or result[0] == "time"
                    took, peak = show(result, arguments.limit, memory)
                    print(f"| {contender} | {mode} | {length} | {batch} | {took} | {peak} |", flush=True)
    print_targets(results, arguments.limit, device)


if __name__ == "__main__":
    main()
