"""Reading ECGs: how fast against the libraries alone, and every sample against theirs.

    python benchmarks/ecg_reading.py --data ../shared/data/ecg --ptbxl PTBXL [--before CHECKOUT]

`read_recording` and the library that is usual for the format read the same file by turns, in one process; given are
milliseconds of CPU and their ratio. PTBXL is a folder as PhysioNet distributes it (`tools/ptbxl.py` unpacks ours).
With `--before`, a checkout of an earlier commit reads PTBXL too, and `training/predict.py` of both runs over fold 9
with one model, by turns.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba.recording import read_recording
from hf_ecgmamba.recording_channels import lead_name

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "ecg")
    parser.add_argument("--ptbxl", type=Path)
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    options.data, options.ptbxl = options.data.resolve(), options.ptbxl and options.ptbxl.resolve()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        compare_formats(options, Path(folder))
        check_samples(options)
        if options.before is not None and options.ptbxl is not None:
            compare_builds(options, Path(folder))


# -- one file, ours and the library alone -----------------------------------------------------------------------------


def compare_formats(options, folder):
    print("| format | file | ours, ms | library alone, ms | ratio |\n|---|---|---|---|---|")
    for name, path, given, library in formats(options, folder):
        ours, theirs = milliseconds(lambda p=path, g=given: read_recording(p, **g), library)
        print(f"| {name} | {path.name} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")


def formats(options, folder):
    """(format, file, what read_recording is given, the library's own reading) of each."""
    import h5py
    import pandas
    import pyedflib
    import scipy.io
    import wfdb

    data, leads = options.data, [*["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]]

    def records(path):
        return lambda: wfdb.rdrecord(str(path.with_suffix("")))

    def edf(path):
        with pyedflib.EdfReader(str(path)) as file:
            return [file.readSignal(k) for k in range(file.signals_in_file)]

    def hdf5(path):
        with h5py.File(path) as file:
            return file["ecg"][()]

    if options.ptbxl is not None:
        path = next(iter(sorted(options.ptbxl.glob("records100/*/*.hea"))))
        yield "WFDB 16", path, {}, records(path)
    path = data / "mitbih_long" / "100.hea"
    yield "WFDB 212 (30 min)", path, {}, records(path)
    path = data / "cinc2021" / "A0001.hea"
    yield "WFDB 16 in .mat", path, {}, records(path)
    path = data / "odd" / "wfdb" / "flacformats.hea"
    yield "WFDB, FLAC", path, {"leads": ["I", "II", "V1"]}, records(path)
    path = data / "clinical" / "synthetic12.edf"
    yield "EDF", path, {}, lambda p=path: edf(p)
    path = folder / "ecg.csv"
    pandas.DataFrame(read_recording(data / "cinc2021" / "A0001.hea").signal.T, columns=leads).to_csv(path, index=False)
    yield "CSV", path, {"sampling_rate": 500, "units": "mV"}, lambda p=path: pandas.read_csv(p)
    path = data / "odd" / "sph_hdf5" / "SPH00001.h5"
    yield "HDF5", path, {}, lambda p=path: hdf5(p)
    path = data / "cpsc2018_raw" / "A1980.mat"
    yield "MATLAB", path, {}, lambda p=path: scipy.io.loadmat(p)
    try:
        import ecgdatakit
        import pydicom
    except ImportError:
        print("| DICOM, aECG | | | | the extra `clinical` is not installed |")
        return
    path = data / "clinical" / "pydicom_waveform_ecg.dcm"
    yield "DICOM", path, {}, lambda p=path: pydicom.dcmread(p).waveform_array(0)
    path = data / "clinical" / "aecg_fda_subject1_0.xml"
    yield "HL7 aECG", path, {}, lambda p=path: ecgdatakit.FileParser().parse(p)


def milliseconds(ours, library):
    """CPU of each in ms, the least of some rounds in which they take turns."""
    best = [np.inf, np.inf]
    for function in (ours, library):
        function()
    repeats = max(1, min(50, int(0.2 / max(cpu_seconds(library, 1), 1e-4))))
    for _ in range(ROUNDS):
        for place, function in enumerate((ours, library)):
            best[place] = min(best[place], cpu_seconds(function, repeats) / repeats * 1e3)
    return best


def cpu_seconds(function, repeats):
    start = time.process_time()
    for _ in range(repeats):
        function()
    return time.process_time() - start


# -- every sample -----------------------------------------------------------------------------------------------------


def check_samples(options):
    """All WFDB records against wfdb's own reading: float32 of its float64 millivolts, to the bit."""
    import wfdb

    equal, refused, other = 0, 0, []
    folders = [options.data, *([options.ptbxl] if options.ptbxl is not None else [])]
    for path in sorted(path for folder in folders for path in folder.rglob("*.hea")):
        try:
            ours = read_recording(path)
            theirs = wfdb.rdrecord(str(path.with_suffix("")), smooth_frames=False, return_res=64)
        except (ValueError, OSError, IndexError, TypeError):
            refused += 1  # by either: a missing file, no ECG in it, a header that wfdb finds malformed
            continue
        rows = [next(k for k, name in enumerate(theirs.sig_name) if lead_name(name) == lead) for lead in ours.leads]
        scale = [{"mv": 1.0, "uv": 1e-3}[theirs.units[row].lower()] for row in rows]
        lengths = {len(theirs.e_p_signal[row]) for row in rows}
        signal = [theirs.e_p_signal[row] * factor for row, factor in zip(rows, scale, strict=True)]
        same = lengths == {ours.signal.shape[1]} and np.array_equal(
            np.stack(signal).astype(np.float32), ours.signal, equal_nan=True
        )
        equal += same
        other += [] if same else [path.name]
    print(f"\nsamples: {equal} records equal to wfdb's reading, {refused} refused by one of the two, other: {other}")


# -- two builds -------------------------------------------------------------------------------------------------------


READ = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hf_ecgmamba.recording import read_recording
paths = sorted(Path(sys.argv[2]).glob("records100/*/*.hea"))[:300]
best = 1e9
for _ in range(4):
    start = time.process_time()
    for path in paths:
        read_recording(path)
    best = min(best, time.process_time() - start)
print(best / len(paths) * 1e3)
"""
PREDICT = """
import sys, time
root, model, folder, output = sys.argv[1:]
sys.path.insert(0, root)
import training.predict as predict
inner, seen = predict.classify, {}
def classify(*arguments):
    seen["start"] = time.perf_counter()
    count = 0
    for item in inner(*arguments):
        count += 1
        yield item
    seen.update(seconds=time.perf_counter() - seen["start"], count=count)
predict.classify = classify
predict.main(["--model", model, "--input", folder, "--output", output])
print(seen["count"] / seen["seconds"])
"""
CACHE = """
import hashlib, sys, time
root, folder, cache = sys.argv[1:]
sys.path.insert(0, root)
from hf_ecgmamba import EcgMambaFeatureExtractor
from training.data.ecg_records import load_splits
from training.data.ptbxl import load_ptbxl
collection = load_ptbxl(folder)
extractor = EcgMambaFeatureExtractor()
start = time.perf_counter()
splits = load_splits(collection, extractor, cache)
rate = sum(map(len, splits.values())) / (time.perf_counter() - start)
digest = hashlib.sha256()
for _, rows in sorted(splits.items()):
    for row in rows:
        digest.update(row["record"].encode())
        for name in ("input_values", "lead_mask", "labels"):
            digest.update(row[name].tobytes())
print(digest.hexdigest(), rate)
"""


def compare_builds(options, folder):
    fold9 = folder / "fold9"
    with open(options.ptbxl / "ptbxl_database.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if int(float(row["strat_fold"])) == 9:
            for ending in (".hea", ".dat"):
                source = options.ptbxl / (row["filename_lr"] + ending)
                target = fold9 / (row["filename_lr"] + ending)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    with open(fold9 / "ptbxl_database.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if int(float(row["strat_fold"])) == 9)
    (fold9 / "scp_statements.csv").write_bytes((options.ptbxl / "scp_statements.csv").read_bytes())
    model = make_model(folder / "model")
    builds = {"before": options.before.resolve(), "now": ROOT}
    results, digests = {name: {"read": [], "predict": [], "cache": []} for name in builds}, {}
    for round_number in range(2):
        for name, root in builds.items():
            place = folder / f"{name}{round_number}"
            results[name]["read"].append(run(READ, root, options.ptbxl)[0])
            results[name]["predict"].append(run(PREDICT, root, model, fold9, place / "scores")[0])
            rate, digests[name] = run(CACHE, root, fold9, place / "cache")
            results[name]["cache"].append(rate)
    before, now = results["before"], results["now"]
    print("\n| build by build | before | now | ratio |\n|---|---|---|---|")
    for what, best, unit in (("read", min, "ms a record"), ("predict", max, "records/s"), ("cache", max, "records/s")):
        old, new = best(before[what]), best(now[what])
        ratio = old / new if best is min else new / old
        words = {"read": "read_recording, PTB-XL", "predict": "training/predict.py, fold 9", "cache": "first reading"}
        print(f"| {words[what]}, {unit} | {old:.2f} | {new:.2f} | {ratio:.2f} |")
    print(json.dumps(results))
    is_equal = digests["before"] == digests["now"]
    print(f"the tensors of the first reading are {'equal, to the bit' if is_equal else 'NOT equal'}")


def make_model(folder):
    import torch

    from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification

    torch.manual_seed(0)
    names = ["NORM", "MI", "STTC", "CD", "HYP"]
    config = EcgMambaConfig(
        id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
        problem_type="multi_label_classification",
    )
    EcgMambaForSequenceClassification(config).save_pretrained(folder)
    EcgMambaFeatureExtractor.from_model_config(config).save_pretrained(folder)
    return folder


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=arguments[0]
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    words = done.stdout.split()
    return float(words[-1]), words[-2] if len(words) > 1 else None


if __name__ == "__main__":
    main()
