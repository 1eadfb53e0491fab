"""What a training leaves behind for its reader: json and csv files, tables, the picture of its curves.

Every file is written beside its place and renamed, so that a reader or a crash never sees half of one.
"""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path


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
