"""MELD's emotions and CH-SIMS v2's sentiment, words alone, through a frozen LLM: the adapter beside probes and TF-IDF.

    python training/get_llm.py --output_dir llms/SmolLM2-135M-Instruct
    R="training/recipes/msa_meld_smollm2.yaml --backbone llms/SmolLM2-135M-Instruct --seeds 1111"
    for K in 0 40; do
        python training/run_msa.py $R --num_context_utterances $K --output_dir runs/msa_meld_smollm2_$K
    done
    python benchmarks/mse_conversations.py meld --llm llms/SmolLM2-135M-Instruct --contexts 0 40
    python training/run_msa.py training/recipes/msa_simsv2_smollm2.yaml --backbone llms/SmolLM2-135M-Instruct \\
        --output_dir runs/msa_simsv2_smollm2_0
    python benchmarks/mse_conversations.py simsv2 --llm llms/SmolLM2-135M-Instruct

MELD: weighted F1; CH-SIMS v2: mean absolute error, correlation and accuracy of the sign. Strengths, class weights and
the probe's layer are chosen on the validation split; the adapter's rows are means over its seeds, from the metrics
that training left. The adapter starts as a probe of the mix of its layers, which one row shows.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.modeling_mse_adapter import LayerMix, MseForConditionalGeneration
from training.checkpoints import FINISHED
from training.data.msa_batches import MsaSamples
from training.data.msa_parquet import load_msa_parquet
from training.llm_states import llm_states_of_samples
from training.recipe import parse_recipe
from training.reports import markdown_table
from training.run_msa import ARGUMENTS, build_processor, load_backbone

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "valid", "test")
# marks are words: much of a feeling stands in them
WORDS = {"token_pattern": r"\w+|[!?.,]+|…", "ngram_range": (1, 2), "min_df": 2, "sublinear_tf": True}
# Chinese has no spaces between words
CHARACTERS = {"analyzer": "char", "ngram_range": (1, 3), "min_df": 2, "sublinear_tf": True}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("meld", "simsv2"))
    parser.add_argument("--llm", required=True)
    parser.add_argument("--contexts", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    recipe = ROOT / "training" / "recipes" / f"msa_{options.data}_smollm2.yaml"
    data, _, network, _ = parse_recipe(ARGUMENTS, [str(recipe), "--backbone", options.llm])
    splits = load_msa_parquet(data.data_path, data.task)
    task = Task(data, splits)
    rows = [["constant", *task.constant()]]
    texts = {split: list(splits[split]["text"][:]) for split in SPLITS}
    before = {split: [""] * len(texts[split]) for split in SPLITS}
    rows.append(["TF-IDF", *task.probe([tfidf(texts, data)])])
    for context in options.contexts:
        if context:
            samples = {split: MsaSamples(splits[split], num_context_utterances=context) for split in SPLITS}
            for split in SPLITS:
                before[split] = [" ".join(text for _, text in turns) for turns in samples[split].context]
            own, earlier = tfidf(texts, data), tfidf(before, data)
            both = {split: hstack([own[split], earlier[split]]).tocsr() for split in SPLITS}
            rows.append([f"TF-IDF, of up to {context} earlier utterances too", *task.probe([both])])
    print(task.table(rows), flush=True)
    for context in options.contexts:
        data.num_context_utterances = context
        states = states_of(data, network, splits)
        shown = f"{context} earlier utterances"
        layers = [{split: states[split][:, place] for split in SPLITS} for place in range(len(network.head_layers))]
        rows.append([f"linear probe of the best layer, {shown}", *task.probe([standardised(x) for x in layers])])
        mix = mixed(states)
        rows.append([f"linear probe of the mix of layers, {shown}", *task.probe([mix])])
        folder = options.runs / f"msa_{options.data}_smollm2_{context}"
        seeds = sorted(folder.glob(f"seed_*/{FINISHED}"))
        if seeds:
            metrics = [json.loads(file.read_text(encoding="utf-8")) for file in seeds]
            rows.append([f"adapter, {shown}, {len(seeds)} seeds", *task.trained(metrics)])
        print("\n" + task.table(rows), flush=True)


class Task:
    """What is measured, and the probes that are fitted to it."""

    def __init__(self, data, splits):
        self.data, self.classifies = data, data.task == "classification"
        self.labels = {split: np.asarray([str(label) for label in splits[split]["label"]]) for split in SPLITS}
        if not self.classifies:
            self.labels = {split: labels.astype(float) for split, labels in self.labels.items()}

    def table(self, rows):
        measured = ["weighted F1"] if self.classifies else ["MAE", "correlation", "Acc-2"]
        return markdown_table(["", *(f"{split}: {name}" for split in SPLITS[1:] for name in measured)], rows)

    def constant(self):
        if self.classifies:
            names, counts = np.unique(self.labels["train"], return_counts=True)
            guess = names[counts.argmax()]
        else:
            guess = np.median(self.labels["train"])
        return self.measured({split: np.full(len(self.labels[split]), guess) for split in SPLITS[1:]})

    def probe(self, alternatives):
        """Of several inputs by split, the probe that is best on the validation split."""
        best = None
        for inputs in alternatives:
            for model in self.models(len(self.labels["train"]), sparse=not isinstance(inputs["train"], np.ndarray)):
                model.fit(inputs["train"], self.labels["train"])
                found = self.measured({split: model.predict(inputs[split]) for split in SPLITS[1:]})
                score = found[0] if self.classifies else -found[0]
                if best is None or score > best[0]:
                    best = score, found
        return best[1]

    def models(self, num_samples, sparse):
        if not self.classifies:
            strengths = (0.3, 1, 3, 10) if sparse else [part * num_samples for part in (0.1, 0.3, 1, 3)]
            return [Ridge(alpha=strength) for strength in strengths]
        strengths = (1, 3, 10) if sparse else (0.003, 0.01, 0.03)
        weights = (None, "balanced") if sparse else (None,)
        return [LogisticRegression(C=c, class_weight=w, max_iter=200) for c in strengths for w in weights]

    def measured(self, guesses):
        if self.classifies:
            return [f1_score(self.labels[split], those, average="weighted") for split, those in guesses.items()]
        found = []
        for split, those in guesses.items():
            true, those = self.labels[split], np.clip(those, *self.data.label_range)
            correlation = np.corrcoef(those, true)[0, 1] if np.ptp(those) else 0.0
            # as the field counts CH-SIMS: zero is with the negative
            found += [np.abs(those - true).mean(), correlation, ((those > 0) == (true > 0)).mean()]
        return [float(value) for value in found]

    def trained(self, runs):
        names = ["weighted_f1"] if self.classifies else ["mae", "correlation", "accuracy_2"]
        return [float(np.mean([run[split][name] for run in runs])) for split in SPLITS[1:] for name in names]


def tfidf(texts, data):
    vectorizer = TfidfVectorizer(**(CHARACTERS if data.language == "zh" else WORDS))
    inputs = {"train": vectorizer.fit_transform(texts["train"])}
    return inputs | {split: vectorizer.transform(texts[split]) for split in SPLITS[1:]}


def states_of(data, network, splits):
    """The LLM's states [samples, layers, hidden_size] by split, as training keeps them."""
    backbone, tokenizer = load_backbone(network, splits["train"]["text"][:])
    processor, config = build_processor(data, network, splits["train"], tokenizer)
    model = MseForConditionalGeneration.from_backbone(backbone, config)
    samples = {s: MsaSamples(splits[s], num_context_utterances=data.num_context_utterances) for s in SPLITS}
    return {split: llm_states_of_samples(model, processor, samples[split]).float() for split in SPLITS}


def standardised(states):
    states = {split: LayerMix.normalised(those) for split, those in states.items()}
    std, mean = torch.std_mean(states["train"], dim=0)
    return {split: ((those - mean) / std.clamp(min=1e-3)).numpy() for split, those in states.items()}


@torch.no_grad()
def mixed(states):
    mix = LayerMix(*states["train"].shape[1:])
    mix.fit(states["train"])
    return {split: mix(those).numpy() for split, those in states.items()}


if __name__ == "__main__":
    main()
