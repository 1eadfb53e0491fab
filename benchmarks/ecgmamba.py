"""The whole ECGMamba classifier against a transformer classifier: latency and throughput by length of the recording.

    python benchmarks/ecgmamba.py [--seconds 10 60 300 1800] [--repeats 5]

Both have the same ECG encoder, width, depth, pooling and head, and (through the transformer's feed-forward width) the
same number of parameters; the transformer's attention is torch's scaled_dot_product_attention. The two are timed in
turn within one run, so that the ratios hold on a machine whose speed drifts. Prints a Markdown table.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import EcgMambaConfig, EcgMambaForSequenceClassification


class TransformerBlock(nn.Module):
    """A pre-norm transformer layer in the place of an ECGMamba block; the first adds sinusoidal positions."""

    def __init__(self, config, feed_forward_size, is_first):
        super().__init__()
        self.is_first = is_first
        self.layer = nn.TransformerEncoderLayer(
            config.hidden_size, config.hidden_size // 32, feed_forward_size, batch_first=True, norm_first=True
        )

    def forward(self, hidden_states, mask=None):
        if self.is_first:
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(1)
            channels = torch.arange(hidden_states.shape[2], device=hidden_states.device)
            angles = positions / 10_000 ** (2 * (channels // 2) / len(channels))
            hidden_states = hidden_states + torch.where(channels % 2 == 0, angles.sin(), angles.cos())
        return self.layer(hidden_states, src_key_padding_mask=None if mask is None else ~mask)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def build_pair(config, device):
    mamba = EcgMambaForSequenceClassification(config)
    transformer = EcgMambaForSequenceClassification(config)
    block, hidden = count(mamba.ecgmamba.blocks[0]), config.hidden_size
    # a transformer layer has 4 h^2 + 9 h parameters besides its feed-forward of width f: 2 h f + f
    feed_forward_size = round((block - 4 * hidden**2 - 9 * hidden) / (2 * hidden + 1))
    layers = (TransformerBlock(config, feed_forward_size, index == 0) for index in range(config.num_hidden_layers))
    transformer.ecgmamba.blocks = nn.ModuleList(layers)
    return mamba.to(device).eval(), transformer.to(device).eval()


def seconds_of(step, model, record):
    device = record.device.type
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model, record)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(model, record):
    with torch.inference_mode():
        model(record)


def training_step(model, record):
    model.zero_grad()
    model(record).logits.square().mean().backward()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60, 300, 1800])
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = EcgMambaConfig(hidden_size=arguments.hidden_size, num_labels=5, problem_type="multi_label_classification")
    models = build_pair(config, device)

    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(
        f"{name}; torch {torch.__version__}; float32; parameters: ECGMamba {count(models[0]):,}, "
        f"transformer {count(models[1]):,}; 12 leads at {config.sampling_rate:g} Hz, "
        f"{config.total_stride} samples a token\n"
    )
    print("| what | recording | batch | tokens | ECGMamba ms | transformer ms | ECGMamba minutes/s | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for what, step in (("forward", forward), ("forward + backward", training_step)):
        for length in arguments.seconds:
            for batch in (1, 16) if length <= 60 else (1,):
                record = torch.randn(batch, config.num_leads, int(length * config.sampling_rate), device=device)
                times = ([], [])
                for repeat in range(arguments.repeats + 1):
                    for model, measured in zip(models, times, strict=True):
                        elapsed = seconds_of(step, model, record)
                        if repeat:  # the first warms up
                            measured.append(elapsed)
                mamba, transformer = map(statistics.median, times)
                tokens = -(-record.shape[-1] // config.total_stride)
                print(
                    f"| {what} | {length} s | {batch} | {tokens} | {mamba * 1e3:.1f} | {transformer * 1e3:.1f} "
                    f"| {batch * length / 60 / mamba:.1f} | {transformer / mamba:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
