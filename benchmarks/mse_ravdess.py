"""RAVDESS, eight emotions by actor, through a tiny frozen LLM: with all modalities, and with audio or vision withheld.

    python benchmarks/mse_ravdess.py [--data_path ../shared/data/msa/ravdess] [--seeds 1111 2222 ...] [--output DIR]

The words say nothing, so what the table shows comes through the pseudo tokens. Prints test accuracy and weighted F1 as
mean and deviation over the seeds, and a linear probe on pooled features beside them.

    python benchmarks/mse_ravdess.py --cross_validate [--seeds 1111] [--tiny_hidden_size 64 ...]

is for choosing: the test's actors (22 to 24) stay out of sight, and of the other 21 each three in turn are held out.
The split's own validation, actors 19 to 21, is the last of these seven folds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import run_msa
from training.data.msa_parquet import load_msa_parquet
from training.reports import markdown_table

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {"audio and vision": (), "vision withheld": ("vision",), "audio withheld": ("audio",)}
RECIPE = ROOT / "training" / "recipes" / "msa_ravdess.yaml"


def linear_probe(data_path, withheld):
    """Test accuracy of a logistic regression on each feature's mean and deviation, tuned on validation."""
    splits = load_msa_parquet(data_path, "classification")

    def pooled(rows):
        parts = [rows[name] for name in ("audio", "vision") if name not in withheld]
        return np.stack([np.concatenate([part.mean(axis=0) for part in row] + [part.std(axis=0) for part in row])
                         for row in zip(*parts, strict=True)])  # fmt: skip

    features = {split: pooled(rows) for split, rows in splits.items()}
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=3000)).fit(
            features["train"], splits["train"]["label"][:]
        )
        for penalty in (0.002, 0.01, 0.05, 0.2)
    ]
    best = max(probes, key=lambda probe: probe.score(features["valid"], splits["valid"]["label"][:]))
    return best.score(features["test"], splits["test"]["label"][:])


def folds_by_actor(data_path, folder):
    """Write train and valid of `data_path` anew, once for each three actors as valid; yields the folders."""
    rows = pyarrow.concat_tables(
        parquet.read_table(Path(data_path) / f"{split}.parquet") for split in ("train", "valid")
    )
    actors = np.array([int(sample_id.split("-")[6]) for sample_id in rows["id"].to_pylist()])
    present = np.unique(actors)
    for start in range(0, len(present), 3):
        held_out = np.isin(actors, present[start : start + 3])
        fold = folder / f"fold_{start // 3}"
        fold.mkdir(parents=True, exist_ok=True)
        for split, chosen in (("train", ~held_out), ("valid", held_out)):
            # an interrupted run goes on with the same files
            if not (fold / f"{split}.parquet").is_file():
                parquet.write_table(rows.filter(chosen), fold / f"{split}.parquet")
        yield fold


def cross_validate(options, overrides, output):
    accuracies = []
    for fold in folds_by_actor(options.data_path, output / "folds"):
        arguments = [str(RECIPE), "--data_path", str(fold), "--seeds", *options.seeds, *overrides]
        arguments += ["--output_dir", str(fold / "runs"), "--resume_from_checkpoint", "--disable_tqdm", "true"]
        runs = run_msa.main(arguments).values()
        accuracies.append(statistics.mean(run["valid"]["accuracy"] for run in runs))
    folds = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    print(f"\nRAVDESS, three of 21 actors held out: accuracy {statistics.mean(accuracies):.3f} (folds {folds})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", default=str(ROOT.parent / "shared" / "data" / "msa" / "ravdess"))
    parser.add_argument("--seeds", nargs="+", default=["1111", "2222", "3333", "4444", "5555"])
    parser.add_argument("--output", type=Path, help="where the runs stay; a second call goes on with them")
    parser.add_argument("--cross_validate", action="store_true", help="without the test's actors")
    options, overrides = parser.parse_known_args()  # what is unknown here goes to the training
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
        if options.cross_validate:
            return cross_validate(options, overrides, output)
        rows = []
        for name, withheld in VARIANTS.items():
            arguments = [str(RECIPE), "--data_path", options.data_path, "--seeds", *options.seeds]
            arguments += ["--output_dir", str(output / name.replace(" ", "_")), "--resume_from_checkpoint"]
            arguments += ["--disable_tqdm", "true", *(["--withhold", *withheld] if withheld else []), *overrides]
            runs = run_msa.main(arguments).values()
            row = [name]
            for split, metric in (("valid", "accuracy"), ("test", "accuracy"), ("test", "weighted_f1")):
                values = [run[split][metric] for run in runs]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                row.append(f"{statistics.mean(values):.3f} ± {deviation:.3f}")
            rows.append([*row, f"{linear_probe(options.data_path, withheld):.3f}"])
    header = ["shown", "valid accuracy", "test accuracy", "test weighted F1", "linear probe, test accuracy"]
    print(f"\nRAVDESS, {len(options.seeds)} seeds\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
