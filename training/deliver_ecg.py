"""From a trained PTB-XL network to the folder that is delivered: card and figures, a real recording as example.

    python training/deliver_ecg.py runs/ecg_ptbxl model_cards/ecgmamba-ptbxl --data_dir PTBXL \\
        --card training/recipes/ptbxl_card.yaml --evaluation benchmarks/figures/ecgmamba-ptbxl.json

The figures are those that `python benchmarks/ptbxl_evaluation.py FOLDER --data_dir PTBXL --output FILE` wrote.
--half stores the weights in sixteen bits.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_ecgmamba import EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, read_recording, save_for_hub
from training.reports import markdown_table

# fold 9, atrial fibrillation and a complete right bundle branch block
EXAMPLE = "records100/03000/03041_lr"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="folder that run_ecg.py left")
    parser.add_argument("output", type=Path)
    parser.add_argument("--data_dir", type=Path, required=True, help="PTB-XL, for the example")
    parser.add_argument("--card", type=Path, required=True, help="yaml with name, about and training")
    parser.add_argument("--evaluation", type=Path, required=True, help="what ptbxl_evaluation.py wrote")
    parser.add_argument("--half", action="store_true", help="weights as float16")
    options = parser.parse_args(arguments)
    card = yaml.safe_load(options.card.read_text(encoding="utf-8"))
    figures = json.loads(options.evaluation.read_text(encoding="utf-8"))
    model = EcgMambaForSequenceClassification.from_pretrained(options.trained)
    feature_extractor = EcgMambaFeatureExtractor.from_pretrained(options.trained)
    example = read_recording(options.data_dir / EXAMPLE)
    order = [example.leads.index(lead) for lead in model.config.leads]
    save_for_hub(
        model,
        feature_extractor,
        options.output,
        name=card["name"],
        description=f"{card['about']}\n\n{card['training']}\n\n{as_markdown(figures)}",
        dataset=f"PTB-XL, fold {figures['fold']}",
        metrics={f"macro_auc_{name.replace(' ', '_')}": values[0] for name, values in figures["auc"].items()},
        license="cc-by-4.0",
        metrics_by_class=figures.get("statements"),
        metrics_by_group=by_group(figures),
        limits=card["limits"],
        weights_dtype=torch.float16 if options.half else None,
        example=np.asarray(example.signal)[order],
    )
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 1e6:.2f} MB")


def by_group(figures):
    """By sex and age, with 95 % intervals, for all statements and for the superclasses."""
    names = {"all": "all 71", "superdiagnostic": "superclasses"}
    return {
        group: {
            column: value
            for name, title in names.items()
            for column, value in zip((title, f"{title}, from", f"{title}, to"), row[name], strict=True)
        }
        for group, row in figures.get("groups", {}).items()
    }


def as_markdown(figures):
    """The tables of a card, of what ptbxl_evaluation.py wrote."""
    columns = (f"fold {figures['fold']}", *figures["auc"])

    def table(rows, first=columns[0]):
        return markdown_table((first, *columns[1:]), rows)

    def with_interval(values):
        return [f"{value:.3f} ({low:.3f}-{high:.3f})" for value, low, high in values]

    def plain(values):
        return [f"{value:.3f}" for value in values]

    parts = [
        "## Figures",
        f"Macro ROC-AUC on the {figures['records']} records of fold {figures['fold']}, on which the network was "
        "selected and its thresholds were tuned, with 95 % bootstrap intervals; fold 10 was not looked at. All six "
        "label sets of the benchmark (arXiv 2004.13701) come from one forward pass; records without a label of a set "
        "are left out, but for *form (kept)*.",
        table([("12 leads", *with_interval(figures["auc"].values()))]),
    ]
    if "leads" in figures:
        parts += [
            "With fewer leads:",
            table([(n, *plain(row.values())) for n, row in figures["leads"].items()], "leads"),
        ]
        parts += [
            "With other rates, mains noise, baseline wander and gain:",
            table([(n, *plain(row.values())) for n, row in figures["robustness"].items()], "changed"),
            f"Expected calibration error, mean over statements: {figures['calibration']['before']:.4f}; after Platt "
            f"scaling fitted on the other half of the fold: {figures['calibration']['after']:.4f}.",
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
