"""ECGMamba over recordings of an hour and of a day: minutes of recording per second, and whether memory stays put.

    python benchmarks/ecg_streaming.py [--hours 1 24] [--rate 250]

Writes a 12-lead WFDB recording for each length (generated, removed afterwards), reads it in overlapping windows of
10 s, and runs the classifier's pipeline over them, then `EcgMambaModel` alone on the same windows, already read, each
length in a process of its own that reports its peak memory. Of the first length, the pipeline also runs one window at
a time. Seconds are CPU time, which other work on the machine hardly stretches: with OMP_NUM_THREADS=1, of one core.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
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
from hf_ecgmamba.pipeline_ecg_classification import BATCH_SIZE, collate


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


def measure(folder, one_by_one):
    """Runs in a process of its own; prints seconds and peak memory as JSON."""
    torch.manual_seed(0)
    config = EcgMambaConfig(num_labels=5, problem_type="multi_label_classification")
    model = EcgMambaForSequenceClassification(config).eval()
    extractor = EcgMambaFeatureExtractor.from_model_config(config)
    read_ecg = EcgClassificationPipeline(model=model, feature_extractor=extractor)
    path = str(folder / "long.hea")
    read_ecg({"array": next(iter(extractor.windows(path))).input_values, "sampling_rate": 100})  # compiles, imports
    base = peak_memory()
    seconds = {"pipeline": seconds_of(read_ecg, path, progress=True)}
    report = {"megabytes_above_start": peak_memory() - base, "windows": 0, "tokens": 0, "seconds": seconds}
    if one_by_one:
        seconds["one by one"] = seconds_of(read_ecg, path, batch_size=1)
    seconds["model"] = 0.0
    windows = iter(extractor.windows(path))
    while batch := list(islice(windows, BATCH_SIZE)):
        inputs, start = collate(batch), time.process_time()
        with torch.inference_mode():
            output = model.ecgmamba(**inputs)
        seconds["model"] += time.process_time() - start
        report["windows"] += len(batch)
        report["tokens"] += output.last_hidden_state.shape[:2].numel()
    print(json.dumps(report))


def seconds_of(read_ecg, path, **arguments):
    """CPU time of the pipeline on a file."""
    start = time.process_time()
    read_ecg(path, **arguments)
    return time.process_time() - start


def peak_memory():
    """MB"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--rate", type=int, default=250, help="samples per second")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-by-one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.one_by_one)
    print(f"12 leads at {arguments.rate} Hz, windows of 10 s with half overlap; {torch.get_num_threads()} threads\n")
    print("Minutes of recording per second of CPU time:\n")
    print("| hours | windows | tokens | pipeline | one window at a time | EcgMambaModel alone | MB above start |")
    print("|---|---|---|---|---|---|---|")
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as folder:
            write_recording(Path(folder), hours, EcgMambaConfig().leads, arguments.rate)
            command = [sys.executable, __file__, "--measure", folder]
            command += ["--one-by-one"] if hours == arguments.hours[0] else []
            report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        speed = {way: f"{60 * hours / seconds:.1f}" for way, seconds in report["seconds"].items()}
        ways = " | ".join(speed.get(way, "") for way in ("pipeline", "one by one", "model"))
        counts = f"{hours} | {report['windows']:,} | {report['tokens']:,}"
        print(f"| {counts} | {ways} | {report['megabytes_above_start']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
