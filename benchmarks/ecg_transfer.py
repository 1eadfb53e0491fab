"""A delivered PTB-XL network on other people's recordings: as it is, fine-tuned, and through half an hour of a heart.

    python benchmarks/ecg_transfer.py FOLDER --data_dir ../shared/data/ecg [--only external fine_tuning rhythm]

external: records of PhysioNet/CinC 2021 that are not from PTB-XL, scored without training for the statements that
SNOMED and PTB-XL share, by source. fine_tuning: `training/run_ecg.py` on a few of them, from this network and from
scratch, against a linear classifier on its frozen features; the rest of the records to test, five splits. rhythm: the
thirty-minute records of MIT-BIH, whose two leads are all it gets: where it marks atrial fibrillation, against the
annotations, second by second.
"""

import argparse
import contextlib
import csv
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import wfdb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.ptbxl_evaluation import macro_auc
from hf_ecgmamba.pipeline_ecg_classification import collate, load_pipeline
from training import run_ecg
from training.reports import markdown_table

# SNOMED CT codes of the challenge by the statement of PTB-XL that says the same
SHARED = {
    "SR": ("426783006",),
    "AFIB": ("164889003",),
    "AFLT": ("164890007",),
    "SBRAD": ("426177001",),
    "STACH": ("427084000",),
    "SARRH": ("427393009",),
    "PAC": ("284470004", "63593006"),
    "PVC": ("427172004", "17338001"),
    "1AVB": ("270492004",),
    "CLBBB": ("164909002", "733534002"),
    "CRBBB": ("59118001", "713427006"),
    "IRBBB": ("713426002",),
    "LAFB": ("445118002",),
    "LVH": ("164873001",),
    "LNGQT": ("111975006",),
    "PACE": ("10370003",),
}
FEWEST = 5  # records with and without a statement for an AUC to be shown
TRAINING_SIZES, SPLITS = (30, 60), 5


def other_records(data_dir):
    """Records that are not from PTB-XL: path, source, and the set of shared statements."""
    table = pd.read_csv(data_dir / "cinc2021" / "labels.csv", dtype={"dx_snomed": str})
    table = table[table.database != "PTB-XL"].reset_index(drop=True)
    codes = table.dx_snomed.str.split(r"[,;| ]+", regex=True).map(set)
    statements = [{name for name, same in SHARED.items() if found & set(same)} for found in codes]
    return [data_dir / "cinc2021" / name for name in table.record], list(table.database), statements


def windows_of(ecg, path):
    return list(ecg.feature_extractor.windows(path, on_doubt="note"))


@torch.inference_mode()
def features(ecg, paths):
    """float [records, pooled_size], the mean over each record's windows; [records, labels], their mean probability."""
    pooled, scores = [], []
    for path in paths:
        batch = collate(windows_of(ecg, path))
        body = ecg.model.ecgmamba(**batch).pooler_output
        pooled.append(body.mean(0).numpy())
        scores.append(ecg.model.classifier(body).sigmoid().mean(0).numpy())
    return np.stack(pooled), np.stack(scores)


def external(ecg, data_dir):
    paths, sources, statements = other_records(data_dir)
    _, scores = features(ecg, paths)
    column = {label: index for index, label in ecg.model.config.id2label.items()}
    rows, values = [], []
    for name in SHARED:
        truth = np.array([name in found for found in statements])
        if min(truth.sum(), (~truth).sum()) < FEWEST:
            continue
        by_source = []
        for source in sorted(set(sources)):
            here = np.array([one == source for one in sources])
            many = min(truth[here].sum(), (~truth[here]).sum()) >= FEWEST
            value = f"{roc_auc_score(truth[here], scores[here, column[name]]):.3f}" if many else "-"
            by_source.append(f"{value} ({truth[here].sum()})")
        values.append(roc_auc_score(truth, scores[:, column[name]]))
        low, high = interval(truth, scores[:, column[name]])
        rows.append((name, int(truth.sum()), f"{values[-1]:.3f} ({low:.3f}-{high:.3f})", *by_source))
    print(f"\n{len(paths)} records, never trained on. ROC-AUC (number with the statement)\n")
    print(markdown_table(("statement", "records", "all sources (95 % interval)", *sorted(set(sources))), rows))
    print(f"\nMean of {len(values)} statements: {np.mean(values):.3f}", flush=True)


def interval(truth, scores, repeats=500):
    generator, drawn = np.random.default_rng(0), []
    while len(drawn) < repeats:
        some = generator.integers(len(truth), size=len(truth))
        if 0 < truth[some].sum() < len(truth):
            drawn.append(roc_auc_score(truth[some], scores[some]))
    return np.percentile(drawn, [2.5, 97.5])


def fine_tuning(ecg, folder, data_dir, epochs):
    paths, _, statements = other_records(data_dir)
    names = [name for name in SHARED if sum(name in found for found in statements) >= 2 * FEWEST]
    truth = np.array([[name in found for name in names] for found in statements])
    usable = np.flatnonzero(truth.any(1))
    pooled, scores = features(ecg, paths)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6)
    column = {label: index for index, label in ecg.model.config.id2label.items()}
    columns = [column[name] for name in names]
    rows = []
    for size in TRAINING_SIZES:
        found = {name: [] for name in ("not trained", "frozen, linear", "fine-tuned", "from scratch")}
        for split in range(SPLITS):
            order = np.random.default_rng(split).permutation(usable)
            chosen, test = order[:size], order[size:]
            found["not trained"].append(macro_auc(scores[test][:, columns], truth[test]))
            linear = np.full((len(paths), len(names)), 0.5)
            for index in range(len(names)):
                if 0 < truth[chosen, index].sum() < len(chosen):
                    head = LogisticRegression(C=0.01, max_iter=2000).fit(pooled[chosen], truth[chosen, index])
                    linear[:, index] = head.predict_proba(pooled)[:, 1]
            found["frozen, linear"].append(macro_auc(linear[test], truth[test]))
            for how, start in (("fine-tuned", ["--model_name_or_path", str(folder)]), ("from scratch", shape_of(ecg))):
                trained = train(start, paths, truth, names, chosen, test, epochs, split)
                found[how].append(macro_auc(trained[test], truth[test]))
        for how, values in found.items():
            spread = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
            rows.append((size, how, f"{np.mean(values):.3f} ± {spread:.3f}"))
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"\nMacro ROC-AUC over {', '.join(names)}; {SPLITS} splits, mean and half its 95 % interval\n")
    print(markdown_table(("records to train on", "what", "ROC-AUC on the rest"), rows), flush=True)


def shape_of(ecg):
    """The flags of run_ecg.py that make the same network anew."""
    config, flags = ecg.model.config, []
    for name in ("hidden_size", "num_hidden_layers", "d_state", "d_conv", "pooling"):
        flags += [f"--{name}", str(getattr(config, name))]
    for name in ("encoder_kernel_sizes", "encoder_strides"):
        flags += [f"--{name}", *map(str, getattr(config, name))]
    return flags


def train(start, paths, truth, names, chosen, test, epochs, seed):
    """A network by run_ecg.py; its probabilities for all records [records, names]. A tenth of `chosen` validates."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        validation = set(chosen[: max(len(names), len(chosen) // 5)])
        with (Path(folder) / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("record", "labels", "split"))
            for index in chosen:
                labels = ";".join(name for name, has in zip(names, truth[index], strict=True) if has)
                writer.writerow((paths[index], labels, "validation" if index in validation else "train"))
        run_ecg.main(
            [
                *("--dataset", "folder", "--data_dir", str(paths[0].parent)),
                *("--labels_table", str(Path(folder) / "labels.csv"), "--cache_dir", str(Path(folder) / "cache")),
                *("--output_dir", str(Path(folder) / "model"), "--num_train_epochs", str(epochs), *start),
                *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine"),
                *("--warmup_steps", "0.1", "--lead_dropout", "0.05", "--amplitude_scaling", "0.1", "--noise", "0.01"),
                *("--crop_pooling", "mean", "--seed", str(seed), "--disable_tqdm", "true", "--use_cpu", "true"),
            ]
        )
        trained = load_pipeline(str(Path(folder) / "model"), device="cpu")
        _, scores = features(trained, paths)
    column = {label: index for index, label in trained.model.config.id2label.items()}
    known = [column.get(name) for name in names]
    return np.stack([scores[:, c] if c is not None else np.full(len(paths), 0.5) for c in known], axis=1)


@torch.inference_mode()
def rhythm(ecg, data_dir):
    label = {name: index for index, name in ecg.model.config.id2label.items()}["AFIB"]
    threshold = (ecg.model.config.thresholds or {label: 0.5})[label]
    rows = []
    for path in sorted((data_dir / "mitbih_long").glob("*.hea")):
        windows = windows_of(ecg, path.with_suffix(""))
        scores = np.concatenate(
            [ecg.model(**collate(windows[k : k + 32])).logits.sigmoid()[:, label] for k in range(0, len(windows), 32)]
        )
        seconds = int(windows[-1].end)
        total, count = np.zeros(seconds), np.zeros(seconds)
        for window, score in zip(windows, scores, strict=True):
            here = slice(int(window.start), min(seconds, round(window.end)))
            total[here] += score
            count[here] += 1
        score, truth = total / np.maximum(count, 1), fibrillating(path.with_suffix(""), seconds)
        marked = score >= threshold
        both = f"{roc_auc_score(truth, score):.3f}" if 0 < truth.sum() < seconds else "-"
        rows.append(
            (
                path.stem,
                seconds,
                int(truth.sum()),
                int(marked.sum()),
                f"{(marked & truth).sum() / truth.sum():.3f}" if truth.any() else "-",
                f"{(~marked & ~truth).sum() / (~truth).sum():.3f}" if not truth.all() else "-",
                both,
            )
        )
        print(f"{path.stem}: marked {stretches(marked)}; annotated {stretches(truth)}", flush=True)
    columns = ("record", "seconds", "annotated AFIB", "marked", "sensitivity", "specificity", "AUC by second")
    print(f"\nThreshold {threshold:.3f}, as tuned on fold 9 of PTB-XL\n")
    print(markdown_table(columns, rows), flush=True)


def fibrillating(path, seconds):
    annotation = wfdb.rdann(str(path), "atr")
    truth, now, since = np.zeros(seconds, dtype=bool), "", 0
    for sample, note in zip(
        [*annotation.sample, seconds * annotation.fs], [*annotation.aux_note, "(END"], strict=True
    ):
        if note.startswith("("):
            at = round(sample / annotation.fs)
            truth[since:at] = now == "(AFIB"
            now, since = note.rstrip("\x00"), at
    return truth


def stretches(marked):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(int), [0]])))
    return ", ".join(f"{a // 60}:{a % 60:02d}-{b // 60}:{b % 60:02d}" for a, b in edges.reshape(-1, 2)) or "nowhere"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data/ecg"))
    parser.add_argument("--only", nargs="+", choices=("external", "fine_tuning", "rhythm"))
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    options = parser.parse_args()
    ecg = load_pipeline(str(options.folder), device="cpu")
    wanted = options.only or ("external", "fine_tuning", "rhythm")
    if "external" in wanted:
        external(ecg, options.data_dir)
    if "rhythm" in wanted:
        rhythm(ecg, options.data_dir)
    if "fine_tuning" in wanted:
        fine_tuning(ecg, options.folder, options.data_dir, options.epochs)


if __name__ == "__main__":
    main()
