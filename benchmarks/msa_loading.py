"""Loading a pickle of CMU-MOSEI's shape: seconds and peak memory, beside `pickle.load`.

    python benchmarks/msa_loading.py [--scale 0.05] [--protocol 4] [--folder DIR] [--before CHECKOUT]

The file is generated, with MMSA's fields and MOSEI's shapes (text [50, 768], audio [500, 74], vision [500, 35] of each
of 22,856 clips; `--scale` of them), padded with zeros at the end as its clips are. Every loading runs in a process of
its own and counts from when its modules are imported: seconds, and how far the memory's peak (VmHWM) rises above what
the imports had taken, in units of the file's size. "shared" is the second process that loads the same file. With
`--before`, an earlier checkout of this repository loads it too.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.reports import markdown_table

ROOT = Path(__file__).resolve().parents[1]
CLIPS = {"train": 16326, "valid": 1871, "test": 4659}
LOADERS = {
    "pickle.load": "import pickle\nload = lambda path: pickle.load(open(path, 'rb'))",
    "load_mmsa_pickle": "from training.data.msa_pickles import load_mmsa_pickle as load",
}
MEASURE = """
import sys, time
sys.path.insert(0, {root!r})
{loader}
def megabytes(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) / 1024
before, start = megabytes("VmRSS"), time.perf_counter()
loaded = load({path!r})
print(time.perf_counter() - start, megabytes("VmHWM") - before)
"""


def write_file(path, scale, protocol):
    """A pickle in MMSA's layout."""
    generator, content = np.random.default_rng(0), {}
    for split, clips in CLIPS.items():
        clips = max(1, round(clips * scale))
        features = {"text": generator.random((clips, 50, 768), np.float32)}
        for name, dim in (("audio", 74), ("vision", 35)):
            lengths = generator.integers(50, 501, clips)
            features[name] = generator.random((clips, 500, dim), np.float32)
            features[name] *= (np.arange(500) < lengths[:, None])[..., None]
            features[f"{name}_lengths"] = lengths.tolist()
        content[split] = features | {
            "raw_text": np.array([f"what is said in clip {index}" for index in range(clips)]),
            "id": [f"{split}{index}$_$0" for index in range(clips)],
            "regression_labels": generator.uniform(-3, 3, clips).astype(np.float32),
        }
    with path.open("wb") as file:
        pickle.dump(content, file, protocol)


def measure(loader, path, root, cache):
    """Seconds and MiB of one loading in a new process."""
    code = MEASURE.format(root=str(root), loader=LOADERS[loader], path=str(path))
    done = subprocess.run(
        [sys.executable, "-c", code], env={"HF_DATASETS_CACHE": str(cache)}, capture_output=True, text=True, check=True
    )
    return tuple(map(float, done.stdout.split()[-2:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.05, help="part of MOSEI's clips")
    parser.add_argument("--protocol", type=int, default=4, help="of the pickle; MMSA's script writes 4")
    parser.add_argument("--folder", type=Path, help="where the file is written")
    parser.add_argument("--before", type=Path, help="an earlier checkout of this repository")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "unaligned.pkl"
        write_file(path, options.scale, options.protocol)
        size = path.stat().st_size / 2**20
        runs = [("pickle.load", "pickle.load", ROOT, "unused")]
        if options.before:
            runs.append(("load_mmsa_pickle, before", "load_mmsa_pickle", options.before.resolve(), "before"))
        runs += [("load_mmsa_pickle", "load_mmsa_pickle", ROOT, "shared")]
        runs += [("load_mmsa_pickle, shared", "load_mmsa_pickle", ROOT, "shared")]
        rows = []
        for name, loader, root, cache in runs:
            seconds, peak = measure(loader, path, root, Path(folder) / cache)
            rows.append([name, f"{seconds:.2f}", f"{peak:.0f}", f"{peak / size:.2f}"])
        print(f"a file of {size:.0f} MiB, {options.scale:g} of MOSEI's clips, protocol {options.protocol}\n")
        print(markdown_table(["", "seconds", "peak MiB", "peak / file"], rows))


if __name__ == "__main__":
    main()
