"""Everything that the card of a PTB-XL network says, measured: one JSON file, and the tables on the screen.

    python benchmarks/ptbxl_evaluation.py FOLDER --data_dir PTBXL [--fold 9] [--output FOLDER/evaluation.json]

FOLDER holds a classifier of all 71 statements, PTBXL the data set as PhysioNet distributes it. The six label sets of
the benchmark (arXiv 2004.13701) come from one forward pass: a sub- or superclass is found unless each of its
statements is absent, 1 - prod(1 - p). Records without a statement of a set are left out, as in the published table;
"form (kept)" keeps them. Intervals are 95 % by bootstrap over records. Every recording is read by the feature
extractor.
"""

import argparse
import ast
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, read_recording
from training.data.ptbxl import LABEL_SETS, statement_labels
from training.reports import markdown_table, write_json

LEAD_SETS = {
    "12 leads": None,
    "I, II, V1-V6": ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    "six limb leads": ("I", "II", "III", "aVR", "aVL", "aVF"),
    "I, II, V2": ("I", "II", "V2"),
    "I and II": ("I", "II"),
    "II alone": ("II",),
    "I alone (a watch)": ("I",),
}
AGES = ((0, 40), (40, 60), (60, 80), (80, 120))


class Evaluation:
    """A network and the recordings of one fold: probabilities of all statements, and what they are worth."""

    def __init__(self, folder, data_dir, fold):
        self.model = EcgMambaForSequenceClassification.from_pretrained(folder).eval()
        self.extractor = EcgMambaFeatureExtractor.from_pretrained(folder)
        self.names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        database = pd.read_csv(Path(data_dir) / "ptbxl_database.csv", index_col="ecg_id")
        self.records = database[database.strat_fold == fold]
        if not len(self.records):
            raise ValueError(f"fold is {fold}; {data_dir} has {sorted(database.strat_fold.unique())}")
        statements = [ast.literal_eval(codes) for codes in self.records.scp_codes]
        self.labels = np.array([[name in codes for name in self.names] for codes in statements])
        self.signals = [read_recording(Path(data_dir) / path) for path in self.records.filename_lr]
        self.sets = {
            name: self._members(statement_labels(Path(data_dir) / "scp_statements.csv", name)) for name in LABEL_SETS
        }

    def _members(self, label_of):
        """For each label of a set the columns of its statements."""
        labels = sorted({label for label in label_of.values() if label is not None})
        return [[column for column, name in enumerate(self.names) if label_of[name] == label] for label in labels]

    @torch.inference_mode()
    def probabilities(self, change=None, leads=None, batch_size=64):
        """float [records, statements]; `change` (signal [leads, time], Hz, generator) -> (signal, Hz) alters them."""
        generator, found = np.random.default_rng(0), []
        for first in range(0, len(self.signals), batch_size):
            batch = []
            for recording in self.signals[first : first + batch_size]:
                signal, rate = recording.signal, recording.sampling_rate
                kept = [index for index, lead in enumerate(recording.leads) if leads is None or lead in leads]
                if change is not None:
                    signal, rate = change(signal, rate, generator)
                batch.append(
                    {
                        "array": signal[kept],
                        "sampling_rate": rate,
                        "leads": [recording.leads[index] for index in kept],
                        "units": "mV",
                    }
                )
            found.append(self.model(**self.extractor(batch, return_tensors="pt")).logits.float().sigmoid())
        return torch.cat(found).numpy().astype(np.float64)

    def of_set(self, name, values, combine):
        return np.stack([combine(values[:, columns]) for columns in self.sets[name]], axis=1)

    def aucs(self, probabilities, rows=slice(None)):
        """Macro ROC-AUC of each label set, and of form with all records kept."""
        result = {}
        for name in LABEL_SETS:
            scores = self.of_set(name, probabilities[rows], lambda p: 1 - np.prod(1 - p, axis=1))
            truth = self.of_set(name, self.labels[rows], lambda y: y.any(axis=1))
            labelled = truth.any(axis=1)
            result[name] = macro_auc(scores[labelled], truth[labelled])
            if name == "form":
                result["form (kept)"] = macro_auc(scores, truth)
        return result

    def with_intervals(self, probabilities, rows=None, repeats=300):
        """As `aucs`, each as [value, low, high]."""
        rows = np.arange(len(self.labels)) if rows is None else np.asarray(rows)
        generator = np.random.default_rng(0)
        drawn = [self.aucs(probabilities, generator.choice(rows, len(rows))) for _ in range(repeats)]
        values = self.aucs(probabilities, rows)
        return {name: [values[name], *np.nanpercentile([d[name] for d in drawn], [2.5, 97.5])] for name in values}


def macro_auc(scores, truth):
    """Mean ROC-AUC over the columns that have both; by ranks (Mann-Whitney)."""
    positives = truth.sum(axis=0)
    usable = (positives > 0) & (positives < len(truth))
    if not usable.any():
        return float("nan")
    scores, truth, positives = scores[:, usable], truth[:, usable], positives[usable]
    ranks = (rankdata(scores, axis=0) * truth).sum(axis=0)
    return float(np.mean((ranks - positives * (positives + 1) / 2) / (positives * (len(truth) - positives))))


def resampled(rate):
    def change(signal, own_rate, generator):
        from scipy.signal import resample_poly

        return resample_poly(signal, int(rate), int(own_rate), axis=1), rate

    return change


def with_mains(signal, rate, generator):
    signal, rate = resampled(500)(signal, rate, generator)
    turns = 50 * np.arange(signal.shape[1]) / rate + generator.random((len(signal), 1))
    return signal + 0.1 * np.sin(2 * np.pi * turns), rate


def with_wander(signal, rate, generator):
    turns = 0.3 * np.arange(signal.shape[1]) / rate + generator.random((len(signal), 1))
    return signal + 0.3 * np.sin(2 * np.pi * turns), rate


ROBUSTNESS = {
    "250 Hz": resampled(250),
    "500 Hz": resampled(500),
    "1000 Hz": resampled(1000),
    "50 Hz mains, 0.1 mV": with_mains,
    "baseline wander, 0.3 mV": with_wander,
    "gain 0.8": lambda signal, rate, generator: (signal * 0.8, rate),
    "gain 1.25": lambda signal, rate, generator: (signal * 1.25, rate),
}


def calibration(probabilities, labels, names):
    """Expected calibration error by statement, before and after Platt scaling fitted on the other half of the fold."""
    half = np.random.default_rng(0).random(len(labels)) < 0.5
    after = probabilities.copy()
    logits = np.log(np.clip(probabilities, 1e-9, None)) - np.log(np.clip(1 - probabilities, 1e-9, None))
    for column in range(labels.shape[1]):
        for part in (half, ~half):
            if 0 < labels[~part, column].sum() < (~part).sum():
                platt = LogisticRegression(C=1e4).fit(logits[~part, column : column + 1], labels[~part, column])
                after[part, column] = platt.predict_proba(logits[part, column : column + 1])[:, 1]
    before, after = (expected_calibration_error(p, labels) for p in (probabilities, after))
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "by statement": {
            name: [float(one), float(other)] for name, one, other in zip(names, before, after, strict=True)
        },
    }


def expected_calibration_error(probabilities, labels, bins=15):
    errors = []
    for column in range(labels.shape[1]):
        place = np.minimum((probabilities[:, column] * bins).astype(int), bins - 1)
        weight = np.bincount(place, minlength=bins)
        gap = np.bincount(place, probabilities[:, column] - labels[:, column], minlength=bins)
        errors.append(np.abs(gap).sum() / weight.sum())
    return np.array(errors)


def by_statement(probabilities, labels, names):
    """AUC, number of records, and sensitivity where 90 % of the records without the statement are left alone."""
    result = {}
    for column, name in enumerate(names):
        positive = labels[:, column]
        if 0 < positive.sum() < len(positive):
            limit = np.quantile(probabilities[~positive, column], 0.9)
            result[name] = {
                "records": int(positive.sum()),
                "auc": macro_auc(probabilities[:, [column]], labels[:, [column]]),
                "sensitivity at 90 % specificity": float((probabilities[positive, column] > limit).mean()),
            }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=9)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only_scores", action="store_true", help="the six label sets alone")
    arguments = parser.parse_args()
    evaluation = Evaluation(arguments.folder, arguments.data_dir, arguments.fold)
    start = time.perf_counter()
    probabilities = evaluation.probabilities()
    report = {
        "fold": arguments.fold,
        "records": len(probabilities),
        "parameters": evaluation.model.num_parameters(),
        "milliseconds a record": 1e3 * (time.perf_counter() - start) / len(probabilities),
        "auc": evaluation.with_intervals(probabilities),
    }
    columns = list(report["auc"])

    def print_table(title, rows):
        print(f"\n{title}\n")
        print(markdown_table((f"fold {arguments.fold}", *columns), rows), flush=True)

    def as_text(triple):
        return f"{triple[0]:.4f} ({triple[1]:.3f}-{triple[2]:.3f})"

    print_table("Macro ROC-AUC (95 % interval)", [("12 leads", *map(as_text, report["auc"].values()))])
    if not arguments.only_scores:
        report["leads"] = {
            name: evaluation.aucs(evaluation.probabilities(leads=leads)) for name, leads in LEAD_SETS.items()
        }
        print_table("Leads", [(name, *row.values()) for name, row in report["leads"].items()])
        report["robustness"] = {
            name: evaluation.aucs(evaluation.probabilities(change)) for name, change in ROBUSTNESS.items()
        }
        print_table("Robustness", [(name, *row.values()) for name, row in report["robustness"].items()])
        records = evaluation.records.reset_index()
        groups = {
            "men": records.index[records.sex == 0],  # as PTB-XL codes it
            "women": records.index[records.sex == 1],
            **{f"age {low}-{high - 1}": records.index[records.age.between(low, high - 1)] for low, high in AGES},
        }
        report["groups"] = {
            f"{name} ({len(rows)})": evaluation.with_intervals(probabilities, rows, repeats=100)
            for name, rows in groups.items()
        }
        rows = [(name, *map(as_text, row.values())) for name, row in report["groups"].items()]
        print_table("Groups (95 % interval)", rows)
        report["calibration"] = calibration(probabilities, evaluation.labels, evaluation.names)
        print(
            f"\nExpected calibration error, mean over statements: {report['calibration']['before']:.4f}, after Platt "
            f"scaling on the other half of the fold {report['calibration']['after']:.4f}"
        )
        report["statements"] = by_statement(probabilities, evaluation.labels, evaluation.names)
    if arguments.output:
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()
