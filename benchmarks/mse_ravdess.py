"""RAVDESS, eight emotions by actor, through a tiny frozen LLM: with all modalities, and with audio or vision withheld.

    python benchmarks/mse_ravdess.py [--data_path ../shared/data/msa/ravdess] [--seeds 1111 2222 ...] [--output DIR]

The words say nothing, so what the table shows comes through the pseudo tokens. Everything is chosen on validation
(actors 19 to 21); the test (22 to 24) is looked at once per seed. Prints test accuracy and weighted F1 as mean and
deviation over the seeds, and a linear probe on pooled features beside them.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", default=str(ROOT.parent / "shared" / "data" / "msa" / "ravdess"))
    parser.add_argument("--seeds", nargs="+", default=["1111", "2222", "3333", "4444", "5555"])
    parser.add_argument("--output", type=Path, help="where the runs stay; a second call goes on with them")
    options, overrides = parser.parse_known_args()  # what is unknown here goes to the training
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
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
