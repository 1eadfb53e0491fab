"""Every way to answer, side by side: which one measures best?

    python benchmarks/mse_answers.py [--data ../shared/data/msa] [--tasks ...] [--seeds 1 2 3] [--output DIR]

For each task and seed an adapter is trained three times on the same tiny frozen LLM, with head "none", "beside" and
"alone", each to the end of its schedule (no checkpoint is selected: that would favour the method that selects). Then
each model answers validation and test by every method that it knows. Defaults are chosen by validation; the test
stands beside it. An answer that cannot be read counts as wrong, and in the MAE as wrong by the whole range.

The LLM is "taught": before it is frozen it learns the training split's texts and labels, without sound and picture, so
that it knows how an answer is written, as any real LLM does. Tasks named "random LLM" have the untaught one.
MOSI's vision is withheld: the network that made it had seen the labels of train and valid.

Speed is measured on the test split, in the same process, after one batch to warm up: CPU seconds, so OMP_NUM_THREADS=1
makes it comparable. The LLM is tiny (two layers, 64 wide): this says how much the methods' own steps cost.
"""

import argparse
import logging
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import EvalPrediction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.answers import methods_of
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from training import run_msa
from training.data.msa_batches import MsaSamples
from training.data.msa_splits import load_splits
from training.data.simulated_msa import CLASSES
from training.data.tiny_language_model import build_tiny_language_model
from training.msa_trainer import metrics_of
from training.recipe import parse_recipe
from training.reports import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "training" / "recipes"
# recipe, folder of the data, changes to the recipe
TASKS = {
    "simulated numbers": ("msa_simulated.yaml", None, {}),
    "simulated numbers, random LLM": ("msa_simulated.yaml", None, {}),
    "simulated classes": ("msa_simulated.yaml", None, {"task": "classification", "labels": list(CLASSES)}),
    "MOSI": ("msa_mosi.yaml", "mosi_uttfeat", {"withhold": ["vision"], "tiny_hidden_size": 64}),
    "RAVDESS": ("msa_ravdess.yaml", "ravdess", {"tiny_hidden_size": 64}),
}
TO_THE_END = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
TO_THE_END |= {"early_stopping_patience": None}
HEADS = ("none", "beside", "alone")
COLUMNS = {
    "regression": {"mae_of_all": "MAE", "correlation": "correlation", "accuracy_2_non0": "Acc-2"},
    "classification": {"accuracy": "accuracy", "weighted_f1": "weighted F1"},
}
BATCH_SIZE = 32


def write_recipe(name, head, options, folder):
    """The task's recipe, changed for one head, as a file in `folder`; returns its path and its arguments, parsed."""
    recipe, data, changes = TASKS[name]
    changes = {**TO_THE_END, **changes, "head": head, "seeds": options.seeds, "output_dir": str(folder)}
    changes |= {"resume_from_checkpoint": True, "disable_tqdm": True}
    if data is not None:
        changes["data_path"] = str(options.data / data)
    if head != "alone":
        changes["head_label_smoothing"] = 0.0
    if "random" not in name:
        changes["backbone"] = str(folder.parent / "taught_llm")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((RECIPES / recipe).read_text(encoding="utf-8")) | changes))
    return path, parse_recipe(run_msa.ARGUMENTS, [str(path)])


def teach(data, network, train, num_steps=300, learning_rate=1e-3):
    """Teach the tiny LLM to write the training split's labels after its texts; it goes to the folder `backbone`."""
    llm, tokenizer = build_tiny_language_model(
        [*train["text"][:], network.prompt_template], network.tiny_hidden_size, network.tiny_num_hidden_layers
    )
    processor, _ = run_msa.build_processor(data, network, train, tokenizer)
    samples = MsaSamples(train, withhold=("audio", "vision"))
    llm.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(llm.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        rows = torch.randint(len(samples), (BATCH_SIZE,), generator=generator).tolist()
        batch = processor.collate(samples.__getitems__(rows))
        # as if no place were kept for pseudo tokens
        mask = batch["attention_mask"] * ~batch["pseudo_token_mask"]
        loss = llm(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            labels=batch["input_ids"].masked_fill(mask == 0, -100),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    llm.save_pretrained(network.backbone)
    tokenizer.save_pretrained(network.backbone)


def answer(model, processor, samples, method):
    """Answers [samples, 1] (NaN or -1 where there is none), labels [samples] and samples answered per CPU second."""
    batches = [samples[start : start + BATCH_SIZE] for start in range(0, len(samples), BATCH_SIZE)]
    missing = math.nan if processor.task == "regression" else -1
    model.predict(processor.collate(batches[0]), processor.answers, method)
    answers, labels, seconds = [], [], 0.0
    for batch in batches:
        batch = processor.collate(batch)
        started = time.process_time()
        predictions = model.predict(batch, processor.answers, method)
        seconds += time.process_time() - started
        answers += [missing if prediction.value is None else prediction.value for prediction in predictions]
        labels += batch["label_values"].tolist()
    return np.array(answers, dtype=float)[:, None], np.array(labels), len(samples) / seconds


def measure(name, head, options, folder):
    """The task, and {method: {split: [metrics of each seed]}} of the adapters trained with this head."""
    path, (data, _, network, _) = write_recipe(name, head, options, folder)
    splits = load_splits(data)
    if network.backbone != run_msa.TINY and not Path(network.backbone, "config.json").is_file():
        teach(data, network, splits["train"])
    run_msa.main([str(path)])
    compute_metrics = metrics_of(data)
    samples = {split: MsaSamples(splits[split], withhold=data.withhold) for split in ("valid", "test")}
    samples = {split: rows.__getitems__(range(len(rows))) for split, rows in samples.items()}
    methods = () if head == "alone" else methods_of(data.task)
    measured = {method: {"valid": [], "test": []} for method in (*methods, *(["head"] if head != "none" else []))}
    for seed in options.seeds:
        model = MseForConditionalGeneration.from_pretrained(folder / f"seed_{seed}").eval()
        processor = MseProcessor.from_pretrained(folder / f"seed_{seed}")
        for method, by_split in measured.items():
            for split, runs in by_split.items():
                answers, labels, speed = answer(model, processor, samples[split], method)
                metrics = compute_metrics(EvalPrediction(answers, labels))
                runs.append(metrics | {"samples": len(labels), "speed": speed})
    return data.task, measured


def over_seeds(runs, metric):
    values = [run.get(metric) for run in runs]
    if None in values:
        return "undefined"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def table(name, options, output):
    rows = []
    for head in HEADS:
        task, measured = measure(name, head, options, output / name.replace(" ", "_") / head)
        columns = COLUMNS[task]
        for method, by_split in measured.items():
            row = [head, method]
            row += [over_seeds(by_split["valid"], metric) for metric in columns]
            row += [over_seeds(by_split["test"], metric) for metric in columns]
            lost = sum(run["unparsable"] for run in by_split["test"])
            asked = sum(run["samples"] for run in by_split["test"])
            speed = statistics.median(run["speed"] for run in by_split["test"])
            rows.append([*row, f"{lost} of {asked}", f"{speed:.0f}"])
    titles = [f"{split} {title}" for split in ("valid", "test") for title in columns.values()]
    return markdown_table(["head", "method", *titles, "test answers lost", "samples/s"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "msa")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1111, 2222, 3333])
    parser.add_argument("--output", type=Path, help="where the runs stay; a second call goes on with them")
    options = parser.parse_args()
    # the table counts the lost answers
    logging.getLogger("hf_mse_adapter.answers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        tables = {name: table(name, options, options.output or Path(temporary)) for name in options.tasks}
    print(f"\n{len(options.seeds)} seeds, mean and deviation; {torch.get_num_threads()} thread(s).")
    for name, rows in tables.items():
        print(f"\n{name}\n\n{rows}")


if __name__ == "__main__":
    main()
