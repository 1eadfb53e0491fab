"""Published networks for 12-lead ECG in plain torch, [batch, 12, time] -> logits, for rows of speed and training.

    python benchmarks/ecg_peers.py [--batches 1 16] [--repeats 5] [--earlier CHECKOUT] [--bfloat16]

xresnet1d101 and resnet1d_wang as the PTB-XL benchmark trains them (Strodthoff et al. 2021; Wang et al. 2017); S4D (Gu
et al. 2022) in the size of the published S4 (512 channels, four bidirectional layers, no stride), which differs from
it by a low-rank term in the making of its kernel and is not written here. Prints ms for the 2.5 s crops that an answer
on 10 s needs (half overlapping for the convolutional networks, four for S4D), and for one pass over 10 s, beside the
delivered ECGMambas, which read 10 s at once, in turn within one run; the ratios are against that.
"""

import argparse
import copy
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import EcgMambaForSequenceClassification

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
TINY = "ecgmamba-ptbxl-tiny"


def convolution(inputs, outputs, kernel, stride=1, activation=True):
    layers = [nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if activation else []))


class ResidualBlock(nn.Module):
    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class PooledHead(nn.Sequential):
    """Mean and maximum over time, one hidden layer."""

    def __init__(self, channels, num_labels, hidden=128):
        super().__init__(
            nn.BatchNorm1d(2 * channels), nn.Dropout(0.25), nn.Linear(2 * channels, hidden), nn.ReLU(),
            nn.BatchNorm1d(hidden), nn.Dropout(0.5), nn.Linear(hidden, num_labels),
        )  # fmt: skip

    def forward(self, x):
        return super().forward(torch.cat((x.amax(-1), x.mean(-1)), 1))


def xresnet1d101(num_labels, leads=12, kernel=5):
    """Bottleneck blocks (3, 4, 23, 3); pooling before the shortcut's 1x1 where the stride is 2."""
    layers = [convolution(leads, 32, kernel, 2), convolution(32, 32, kernel), convolution(32, 64, kernel)]
    layers.append(nn.MaxPool1d(3, 2, 1))
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 23, 3), (64, 64, 64, 64), strict=True)):
        outputs = 4 * width
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            body = nn.Sequential(
                convolution(inputs, width, 1),
                convolution(width, width, kernel, stride),
                convolution(width, outputs, 1, activation=False),
            )
            shortcut = []
            if stride > 1:
                shortcut.append(nn.AvgPool1d(2, ceil_mode=True))
            if inputs != outputs:
                shortcut.append(convolution(inputs, outputs, 1, activation=False))
            layers.append(ResidualBlock(body, nn.Sequential(*shortcut)))
            inputs = outputs
    return nn.Sequential(*layers, PooledHead(inputs, num_labels))


def resnet1d_wang(num_labels, leads=12):
    """Three blocks of kernels 5 and 3."""
    layers, inputs = [convolution(leads, 128, 7)], 128
    for stride in (1, 2, 2):
        body = nn.Sequential(convolution(inputs, 128, 5, stride), convolution(128, 128, 3, activation=False))
        shortcut = nn.Identity() if stride == 1 else convolution(inputs, 128, 1, stride, activation=False)
        layers.append(ResidualBlock(body, shortcut))
    return nn.Sequential(*layers, PooledHead(128, num_labels))


class S4DLayer(nn.Module):
    """Diagonal state space, S4D-Lin, both directions: y = x * kernel by FFT, GELU, 1x1 convolution with GLU, residual,
    LayerNorm."""

    def __init__(self, channels, d_state=8, dropout=0.2):
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(channels) * math.log(100) + math.log(1e-3))
        self.log_A_real = nn.Parameter(torch.full((channels, d_state // 2), 0.5).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(d_state // 2).float().expand(channels, -1).contiguous())
        self.C = nn.Parameter(torch.randn(2, channels, d_state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(channels))
        self.mix, self.norm = nn.Conv1d(channels, 2 * channels, 1), nn.LayerNorm(channels)
        self.dropout = nn.Dropout1d(dropout)

    def kernel(self, length):
        """[2, channels, length]"""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dt_A = A * self.log_dt.exp().unsqueeze(-1)
        C = torch.view_as_complex(self.C) * (torch.exp(dt_A) - 1) / A
        powers = torch.exp(dt_A.unsqueeze(-1) * torch.arange(length, device=A.device))
        return 2 * torch.einsum("dcn,cnl->dcl", C, powers).real

    def forward(self, x):
        length = x.shape[-1]
        forwards, backwards = self.kernel(length)
        both = nn.functional.pad(forwards, (0, length)) + nn.functional.pad(backwards.flip(-1), (length, 0))
        y = torch.fft.irfft(torch.fft.rfft(x, 2 * length) * torch.fft.rfft(both), 2 * length)[..., :length]
        y = nn.functional.glu(self.mix(self.dropout(nn.functional.gelu(y + self.D.unsqueeze(-1) * x))), dim=1)
        return self.norm((x + self.dropout(y)).transpose(1, 2)).transpose(1, 2)


class S4D(nn.Module):
    """A 1x1 convolution, layers of [`S4DLayer`] at every sample, the mean over time, a linear head."""

    def __init__(self, num_labels, channels=512, layers=4, d_state=8, leads=12):
        super().__init__()
        self.encoder = nn.Conv1d(leads, channels, 1)
        self.layers = nn.Sequential(*(S4DLayer(channels, d_state) for _ in range(layers)))
        self.head = nn.Linear(channels, num_labels)

    def forward(self, x):
        return self.head(self.layers(self.encoder(x)).mean(-1))


PEERS = {"xresnet1d101": xresnet1d101, "resnet1d_wang": resnet1d_wang, "S4D 512 x 4": S4D}
# crops of 2.5 s that the published answer on 10 s is the mean of: stride half a crop, and no overlap for S4
CROPS = {"xresnet1d101": 7, "resnet1d_wang": 7, "S4D 512 x 4": 4}


def load_package(folder, name):
    """The package hf_ecgmamba of another checkout, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, folder / "hf_ecgmamba" / "__init__.py")
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, nargs="+", default=[CARDS / "ecgmamba-ptbxl", CARDS / TINY])
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier commit, whose default network is timed")
    parser.add_argument("--bfloat16", action="store_true", help="each network in bfloat16, too")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels", type=int, default=71)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    models = {name: build(arguments.labels).eval() for name, build in PEERS.items()}
    if arguments.earlier:
        package = load_package(arguments.earlier, "earlier_ecgmamba")
        config = package.EcgMambaConfig(num_labels=arguments.labels, problem_type="multi_label_classification")
        models["earlier ECGMamba"] = package.EcgMambaForSequenceClassification(config).eval()
    ours = {folder.name: EcgMambaForSequenceClassification.from_pretrained(folder) for folder in arguments.networks}
    if arguments.bfloat16:
        ours |= {f"{name}, bfloat16": copy.deepcopy(model).to(torch.bfloat16) for name, model in ours.items()}
    models |= ours
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = ("network", "parameters", "crops", "batch", "crops, ms a record", "10 s at once")
    columns += tuple(f"{name}: faster by (at once)" for name in ours)
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for batch in arguments.batches:
        times = {name: ([], []) for name in models}
        for repeat in range(arguments.repeats + 1):
            for name, model in models.items():
                whole = torch.randn(batch, 12, 1000, dtype=next(model.parameters()).dtype)
                crops = torch.randn(batch * CROPS[name], 12, 250) if name in CROPS else None
                for inputs, measured in zip((crops, whole), times[name], strict=True):
                    if inputs is None:
                        continue
                    start = time.perf_counter()
                    with torch.inference_mode():
                        model(inputs)
                    if repeat:  # the first warms up
                        measured.append(1e3 * (time.perf_counter() - start) / batch)
        for name in models:
            answer, at_once = (statistics.median(each) if each else None for each in times[name])
            count = sum(parameter.numel() for parameter in models[name].parameters())
            row = [name, f"{count:,}", CROPS.get(name, "-"), batch]
            row += ["-" if answer is None else f"{answer:.2f}", f"{at_once:.2f}"]
            for other in ours:
                own = statistics.median(times[other][1])
                row.append(f"{at_once / own:.2f}" if answer is None else f"{answer / own:.2f} ({at_once / own:.2f})")
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
