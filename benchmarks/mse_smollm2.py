"""CMU-MOSI through a frozen real LLM: the adapter beside a probe of the same states, TF-IDF and a constant.

    python training/get_llm.py --output_dir llms/SmolLM2-135M-Instruct
    python training/run_msa.py training/recipes/msa_mosi_smollm2.yaml --backbone llms/SmolLM2-135M-Instruct
    python benchmarks/mse_smollm2.py --llm llms/SmolLM2-135M-Instruct

Mean absolute error, Pearson correlation, accuracy of the sign (negative or not, all clips) on the test split. Probes
are ridge regressions whose penalty the validation split chooses; the adapter's rows are means over the seeds of the
second command, each seed's epoch chosen on the validation split. Some rows show the adapters that were trained on one
copy of the LLM around others: every weight moved by uniform noise of one step of Q4_1 (a 15th of the range of its
block of 32), and its float32 weights where it was trained on bfloat16.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter import MseConfig, MseForConditionalGeneration, MseProcessor
from hf_mse_adapter.backbone_likeness import likeness_of, require_likeness
from training.data.msa_batches import MsaSamples
from training.data.msa_parquet import load_msa_parquet
from training.llm_states import StatesCollator, llm_states_of_samples
from training.reports import markdown_table

SPLITS = ("train", "valid", "test")
LAYERS = (15, 18, 30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data" / "msa" / "mosi_uttfeat")
    parser.add_argument("--llm", type=Path, default=root / "llms" / "SmolLM2-135M-Instruct")
    parser.add_argument("--runs", type=Path, default=root / "runs" / "msa_mosi_smollm2")
    options = parser.parse_args()
    splits = load_msa_parquet(options.data, "regression")
    labels = {split: np.asarray(splits[split]["label"][:], dtype=float) for split in SPLITS}
    texts = {split: list(splits[split]["text"][:]) for split in SPLITS}

    rows = [["constant (median of train)", *scores(np.full(len(labels["test"]), np.median(labels["train"])), labels)]]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    inputs = {"train": vectorizer.fit_transform(texts["train"])}
    inputs |= {split: vectorizer.transform(texts[split]) for split in ("valid", "test")}
    rows.append(["ridge on TF-IDF", *scores(ridge(inputs, labels, (0.3, 1, 3, 10)), labels)])
    show(rows)

    llm = AutoModelForCausalLM.from_pretrained(options.llm, dtype=torch.bfloat16)
    folders = sorted(options.runs.glob("seed_*"))
    rows += adapter_rows("adapter", folders, llm, splits, labels, ([], ["audio"], ["text"]))
    show(rows)
    recorded = likeness_of(llm)
    for name, other in (("float32", copy.deepcopy(llm).float()), ("noise of one step of Q4_1", with_noise(llm))):
        cosine = require_likeness(other, recorded)
        rows += adapter_rows(f"adapter, LLM with {name} (cosine {cosine:.4f})", folders, other, splits, labels, ([],))
    show(rows)

    for case in (True, False):
        states = probe_states(llm, options.llm, splits, case)
        for place, layer in enumerate(LAYERS):
            inputs = {split: those[:, place].float().numpy() for split, those in states.items()}
            spread = inputs["train"].std(axis=0) + 1e-6
            inputs = {split: (those - inputs["train"].mean(axis=0)) / spread for split, those in inputs.items()}
            penalties = np.array([0.3, 1, 3, 10]) * len(labels["train"])
            name = f"ridge on the last token after layer {layer} of 30, {'sentence case' if case else 'UPPER CASE'}"
            rows.append([name, *scores(ridge(inputs, labels, penalties), labels)])
        show(rows)


def probe_states(llm, folder, splits, sentence_case):
    config = MseConfig(
        audio_dim=73,
        vision_dim=100,
        head="alone",
        head_layers=LAYERS,
        fusion="head",
        prompt_template="<|im_start|>{text}",
    )
    model = MseForConditionalGeneration.from_backbone(llm, config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = MseProcessor.from_config(config, tokenizer, sentence_case=sentence_case)
    return {split: llm_states_of_samples(model, processor, MsaSamples(splits[split])) for split in SPLITS}


def adapter_rows(name, folders, llm, splits, labels, withheld):
    rows = []
    for withhold in withheld:
        found = []
        for folder in folders:
            processor = MseProcessor.from_pretrained(folder)
            model = MseForConditionalGeneration.from_pretrained(folder, backbone=llm, ignore_mismatched_backbone=True)
            samples = MsaSamples(splits["test"], withhold=["vision", *withhold])
            samples.llm_states = llm_states_of_samples(model, processor, samples)
            batch = StatesCollator(processor)(samples.__getitems__(range(len(samples))))
            answers = model.predict(batch, processor.answers)
            found.append(scores(np.array([answer.value for answer in answers]), labels))
        missing = f" without {' and '.join(withhold)}" if withhold else ""
        rows.append([f"{name}{missing}, {len(folders)} seeds", *np.mean(found, axis=0).tolist()])
    return rows


@torch.no_grad()
def with_noise(llm):
    """A copy of the LLM whose matrices' weights are moved by uniform noise of one step of Q4_1."""
    llm = copy.deepcopy(llm).float()
    generator = torch.Generator().manual_seed(0)
    for parameter in llm.parameters():
        if parameter.ndim == 2:
            blocks = parameter.view(-1, 32)
            step = (blocks.amax(dim=1) - blocks.amin(dim=1)) / 15
            blocks += step[:, None] * (torch.rand(blocks.shape, generator=generator) - 0.5)
    return llm


def ridge(inputs, labels, penalties):
    """Guesses for the test split by the penalty that is best on the validation split."""
    probes = [Ridge(alpha=penalty).fit(inputs["train"], labels["train"]) for penalty in penalties]
    errors = [np.abs(probe.predict(inputs["valid"]).clip(-3, 3) - labels["valid"]).mean() for probe in probes]
    return probes[int(np.argmin(errors))].predict(inputs["test"])


def scores(guesses, labels):
    guesses, true = np.clip(guesses, -3, 3), labels["test"]
    correlation = np.corrcoef(guesses, true)[0, 1] if np.ptp(guesses) else 0.0
    return [np.abs(guesses - true).mean(), correlation, ((guesses >= 0) == (true >= 0)).mean()]


def show(rows):
    print(markdown_table(["", "MAE", "correlation", "Acc-2 (>= 0)"], rows), flush=True)
    print()


if __name__ == "__main__":
    main()
