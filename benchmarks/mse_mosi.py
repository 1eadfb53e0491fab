"""CMU-MOSI through a tiny frozen LLM, honestly beside what is simpler: a TF-IDF ridge, a constant, text withheld.

    python benchmarks/mse_mosi.py [--data_path ../shared/data/msa/mosi_uttfeat] [--seeds 1111 ...] [--output DIR]

A tiny untrained LLM knows no English: this shows the machinery on real data, not the paper's score. Prints test MAE
and correlation, mean and deviation over the seeds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import run_msa
from training.data.msa_parquet import load_msa_parquet
from training.metrics import load_metric
from training.reports import markdown_table

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {"MSE-Adapter, tiny LLM": (), "the same, text withheld": ("text",)}
VARIANTS |= {"the same, audio and vision withheld": ("audio", "vision")}
RECIPE = ROOT / "training" / "recipes" / "msa_mosi.yaml"


def baselines(data_path):
    """Test metrics of a ridge regression on TF-IDF of words and pairs, and of the training labels' median."""
    splits = load_msa_parquet(data_path, "regression")
    texts = {split: list(rows["text"]) for split, rows in splits.items()}
    labels = {split: np.asarray(rows["label"][:]) for split, rows in splits.items()}
    ridges = [
        make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), Ridge(alpha=alpha)).fit(
            texts["train"], labels["train"]
        )
        for alpha in (0.3, 1.0, 3.0)
    ]
    ridge = min(ridges, key=lambda ridge: np.abs(ridge.predict(texts["valid"]) - labels["valid"]).mean())
    metric = load_metric("msa_regression", "mosi")
    median = np.full(len(labels["test"]), np.median(labels["train"]))
    return {
        "TF-IDF ridge": metric.compute(predictions=ridge.predict(texts["test"]), references=labels["test"]),
        "constant (median)": metric.compute(predictions=median, references=labels["test"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", default=str(ROOT.parent / "shared" / "data" / "msa" / "mosi_uttfeat"))
    parser.add_argument("--seeds", nargs="+", default=["1111", "2222", "3333", "4444", "5555"])
    parser.add_argument("--output", type=Path, help="where the runs stay; a second call goes on with them")
    options, overrides = parser.parse_known_args()  # what is unknown here goes to the training
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for index, (name, withheld) in enumerate(VARIANTS.items()):
            arguments = [str(RECIPE), "--data_path", options.data_path, "--seeds", *options.seeds]
            arguments += ["--output_dir", str((options.output or Path(temporary)) / str(index))]
            arguments += ["--resume_from_checkpoint", "--disable_tqdm", "true"]
            runs = run_msa.main([*arguments, *(["--withhold", *withheld] if withheld else []), *overrides]).values()
            rows.append(
                [name, *(_over_seeds([run["test"].get(key) for run in runs]) for key in ("mae", "correlation"))]
            )
    for name, result in baselines(options.data_path).items():
        rows.append([name, *(_over_seeds([result.get(key)]) for key in ("mae", "correlation"))])
    print(f"\nCMU-MOSI test, {len(options.seeds)} seeds\n\n{markdown_table(['', 'MAE', 'correlation'], rows)}")


def _over_seeds(values):
    if None in values:
        return "undefined"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
