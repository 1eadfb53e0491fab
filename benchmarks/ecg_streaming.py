"""ECGMamba over recordings of an hour and of a day: minutes of recording per second, and whether memory stays put.

    python benchmarks/ecg_streaming.py [--hours 1 24] [--rate 250]

Writes a 12-lead WFDB recording for each length (generated, removed afterwards), reads it in overlapping windows of
10 s, and runs the classifier's pipeline over them, then `EcgMambaModel` alone, each length in a process of its own
that reports its peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import (
    EcgClassificationPipeline,
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForSequenceClassification,
)
from hf_ecgmamba.pipeline_ecg_classification import collate


def write_recording(folder, hours, leads, rate):
    """WFDB format 16, 1000 units per mV: spikes once a second and noise, written minute by minute."""
    generator, minute = np.random.default_rng(0), 60 * rate
    time_of_beat = (np.arange(minute) % rate) / rate
    beat = 1000 * np.exp(-(((time_of_beat - 0.5) / 0.02) ** 2))
    with open(folder / "long.dat", "wb") as file:
        for _ in range(60 * hours):
            block = beat[:, None] + 30 * generator.standard_normal((minute, len(leads)))
            file.write(block.astype("<i2").tobytes())
    lines = [f"long {len(leads)} {rate} {60 * hours * minute}"]
    lines += [f"long.dat 16 1000(0)/mV 16 0 0 0 0 {lead}" for lead in leads]
    (folder / "long.hea").write_text("\n".join(lines) + "\n")


def measure(folder):
    """Runs in a process of its own; prints seconds and peak memory of both ways as JSON."""
    torch.manual_seed(0)
    config = EcgMambaConfig(num_labels=5, problem_type="multi_label_classification")
    model = EcgMambaForSequenceClassification(config).eval()
    extractor = EcgMambaFeatureExtractor.from_model_config(config)
    read_ecg = EcgClassificationPipeline(model=model, feature_extractor=extractor)
    read_ecg({"array": np.random.randn(12, 1000).astype(np.float32), "sampling_rate": 100}, batch_size=16)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = read_ecg(str(folder / "long.hea"), progress=True)
    pipeline_seconds = time.perf_counter() - start

    windows, batch, tokens = extractor.windows(str(folder / "long.hea")), [], 0
    start = time.perf_counter()
    with torch.inference_mode():
        for index, window in enumerate(windows, 1):
            batch.append(window)
            if len(batch) == 16 or index == len(windows):
                tokens += model.ecgmamba(**collate(batch)).last_hidden_state.shape[:2].numel()
                batch = []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "windows": len(windows),
        "stretches": len(result["timeline"]),
        "tokens": tokens,
        "pipeline_seconds": pipeline_seconds,
        "encoder_seconds": time.perf_counter() - start,
        "megabytes_above_start": (peak - base) / 1024,
    }
    print(json.dumps(report))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--rate", type=int, default=250, help="samples per second")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    print(f"12 leads at {arguments.rate} Hz, windows of 10 s with half overlap; {torch.get_num_threads()} threads\n")
    print("| hours | windows | pipeline, minutes/s | EcgMambaModel, minutes/s | tokens | memory above start, MB |")
    print("|---|---|---|---|---|---|")
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as folder:
            write_recording(Path(folder), hours, EcgMambaConfig().leads, arguments.rate)
            command = [sys.executable, __file__, "--measure", folder]
            report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        minutes = 60 * hours
        print(
            f"| {hours} | {report['windows']} | {minutes / report['pipeline_seconds']:.1f} "
            f"| {minutes / report['encoder_seconds']:.1f} | {report['tokens']:,} "
            f"| {report['megabytes_above_start']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
