"""What a training leaves behind for its reader: json and csv files, tables, the card, the picture of its curves.

Every file is written beside its place and renamed, so that a reader or a crash never sees half of one.
"""

import csv
import json
import math
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def atomic_path(path):
    """Yield a temporary path in the folder of `path`; it takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}_", suffix=path.suffix)
    os.close(handle)
    # mkstemp makes files for the owner alone; a report is for whoever the folder is for
    os.chmod(temporary, 0o644)
    try:
        yield Path(temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path, value):
    """Write `value` as indented UTF-8 json, whole or not at all. NaN and infinity are refused (ValueError)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def markdown_table(header, rows):
    """A markdown table as one string; numbers are written with four significant digits."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def plot_training_curves(log_histories, path, metric):
    """Draw training loss, validation loss and one validation metric over the epochs, one line per run.

    Args:
        log_histories (dict[str, list[dict]]): name of the run -> `trainer.state.log_history`.
        path: where the picture goes; its suffix chooses the format.
        metric (str): name of the validation metric without `eval_`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for index, (name, history) in enumerate(log_histories.items()):
        color = f"C{index % 10}"
        panels = ((axes[0], "loss", "-"), (axes[0], "eval_loss", "--"), (axes[1], f"eval_{metric}", "-"))
        for axis, key, style in panels:
            points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
            if points:
                label = name if key != "eval_loss" else None
                axis.plot(*zip(*points, strict=True), style, color=color, label=label)
    axes[0].set(xlabel="epoch", ylabel="loss (dashed: validation)")
    axes[1].set(xlabel="epoch", ylabel=f"validation {metric}")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)


def card_texts(folder, data, splits, epochs, metrics):
    """What the model card says of this training."""
    names = [name for name in next(iter(metrics.values())) if all(name in measured for measured in metrics.values())]
    rows = [[split, *(measured[name] for name in names)] for split, measured in metrics.items()]
    return {
        "model_name": f"{folder.parent.name}, {folder.name}",
        "training_description": f"On {len(splits['train'])} samples (data set: {data.dataset}), for {epochs:g} "
        "epochs, by `training/run_msa.py`; its arguments are in `made_with.json`.",
        "evaluation_description": markdown_table(["split", *names], rows),
    }


def finite_or_none(value):
    """A diverged loss is no number that JSON knows."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_predictions(path, dataset, answers, data):
    """One row per sample: id, text, label, prediction, and its spread or the classes' probabilities."""
    if data.task == "regression":
        header = ["prediction", "spread"]
        rows = [["" if math.isnan(value) else value, spread] for value, spread in answers.tolist()]
    else:
        header = ["prediction", *(f"probability {label}" for label in data.labels)]
        rows = [
            ["" if index < 0 else data.labels[int(index)], *probabilities]
            for index, *probabilities in answers.tolist()
        ]
    columns = [dataset[name][:] for name in ("id", "text", "label")]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *header])
        writer.writerows([*sample, *row] for *sample, row in zip(*columns, rows, strict=True))


def write_results(runs, output_dir, data):
    """results.json, results.md with mean and deviation over the seeds, and the training curves."""
    tables = []
    for split in next(iter(runs.values()))[0]:
        measured = {seed: metrics[split] for seed, (metrics, _) in runs.items()}
        # a metric that one seed leaves undefined has no mean
        names = [name for name in next(iter(measured.values())) if all(name in run for run in measured.values())]
        rows = [[seed, *(run[name] for name in names)] for seed, run in measured.items()]
        values = np.array([row[1:] for row in rows], dtype=float)
        rows.append(["mean", *values.mean(axis=0).tolist()])
        if len(rows) > 2:
            rows.append(["deviation", *values.std(axis=0, ddof=1).tolist()])
        tables.append(f"{split}\n\n{markdown_table(['seed', *names], rows)}")
    report = "\n\n".join(tables)
    models = [f"seed_{seed}" for seed in runs]
    print(report)
    with atomic_path(output_dir / "results.md") as temporary:
        temporary.write_text(report + "\n", encoding="utf-8")
    write_json(output_dir / "results.json", {seed: metrics for seed, (metrics, _) in runs.items()})
    plot_training_curves(
        {f"seed {seed}": history for seed, (_, history) in runs.items()},
        output_dir / "training_curves.png",
        metric="mae_of_all" if data.task == "regression" else "weighted_f1",
    )
    print(f"\nin {output_dir}: results.md, results.json, training_curves.png; a model by seed: {', '.join(models)}")
