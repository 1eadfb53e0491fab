"""CMU-MOSI through a frozen SmolLM2, by where the answer comes from: what two minutes of training give each.

    for FORM in paper last after head; do
        python benchmarks/mse_smollm2_forms.py --llm llms/SmolLM2-135M-Instruct --form $FORM --part train
    done
    for METHOD in greedy constrained expected; do
        python benchmarks/mse_smollm2_forms.py --llm llms/SmolLM2-135M-Instruct --form paper --method $METHOD
    done
    for FORM in last after head; do
        python benchmarks/mse_smollm2_forms.py --llm llms/SmolLM2-135M-Instruct --form $FORM
    done

Words and audio, one seed, batches of eight, bfloat16, AdamW at 5e-4, warm-up and cosine over 120 CPU seconds of one
thread, however often a form gets through the 1,257 training clips in them. Nothing is chosen by the test split.

- paper: pseudo tokens before the text, the answer written, or chosen, or the mean over all;
- last: the same prompt, a head on the last layer instead;
- after: pseudo tokens after the text, a head on the mix of layers 14 to 22;
- head: audio joins at the head, as in the recipe msa_mosi_smollm2.yaml, but from a random head; the LLM's
  states are made once, within the 120 seconds.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mse_smollm2 import scores
from hf_mse_adapter import MseForConditionalGeneration, MseProcessor
from training.data.msa_batches import MsaSamples
from training.data.msa_parquet import load_msa_parquet
from training.llm_states import StatesCollator, llm_states_of_samples
from training.recipe import parse_recipe
from training.reports import markdown_table
from training.run_msa import ARGUMENTS, build_processor, load_backbone

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "training" / "recipes" / "msa_mosi_smollm2_paper.yaml"
LAYERS = ["14", "15", "16", "17", "18", "19", "20", "21", "22"]
FORMS = {
    "paper": [],
    "last": ["--head", "alone"],
    "after": ["--head", "alone", "--head_layers", *LAYERS, "--prompt_template", "<|im_start|>{text}{pseudo_tokens}"],
    "head": [
        "--head",
        "alone",
        "--head_layers",
        *LAYERS,
        "--fusion",
        "head",
        "--prompt_template",
        "<|im_start|>{text}",
    ],
}
BATCH_SIZE, SECONDS, WARM_UP = 8, 120, 0.1


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--part", choices=("train", "answer"), default="answer")
    parser.add_argument("--method", help="of AnswerFormat.predict, for the paper's form")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "mse_smollm2_forms")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, _, network, training = parse_recipe(
        ARGUMENTS, [str(RECIPE), "--backbone", options.llm, *FORMS[options.form]]
    )
    splits = load_msa_parquet(data.data_path, data.task)
    backbone, tokenizer = load_backbone(network, splits["train"]["text"][:])
    if options.part == "train":
        processor, config = build_processor(data, network, splits["train"], tokenizer)
        set_seed(training.seeds[0])
        model = MseForConditionalGeneration.from_backbone(backbone, config)
        samples = MsaSamples(splits["train"], withhold=data.withhold)
        seen = train(model, processor, samples, training.learning_rate)
        model.save_pretrained(options.runs / options.form)
        processor.save_pretrained(options.runs / options.form)
        parameters = sum(parameter.numel() for parameter in model.adapter.parameters())
        table = [[options.form, f"{parameters:,}", seen, seen / SECONDS]]
        print(markdown_table(["form", "parameters", "clips seen", "clips per second of training"], table))
        return
    model = MseForConditionalGeneration.from_pretrained(options.runs / options.form, backbone=backbone)
    processor = MseProcessor.from_pretrained(options.runs / options.form)
    samples = MsaSamples(splits["test"], withhold=data.withhold)
    labels = {"test": np.asarray(splits["test"]["label"][:], dtype=float)}
    begin = time.process_time()
    guesses, unread = answered(model, processor, samples, options.method)
    speed = len(samples) / (time.process_time() - begin)
    name = f"{options.form}, {options.method or 'head'}"
    header = ["", "MAE", "correlation", "Acc-2 (>= 0)", "not readable", "clips per second"]
    print(markdown_table(header, [[name, *map(float, scores(guesses, labels)), unread, speed]]))


def train(model, processor, samples, learning_rate):
    """Train for SECONDS of this process; returns how many clips were seen."""
    begin, order, seen = time.process_time(), [], 0
    collate = processor.collate
    if model.config.fusion == "head":
        collate = StatesCollator(processor)
        with tempfile.TemporaryDirectory() as folder:
            samples.llm_states = llm_states_of_samples(model, processor, samples, folder)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=learning_rate)
    generator = random.Random(0)
    model.train()
    while (progress := (time.process_time() - begin) / SECONDS) < 1:
        if len(order) < BATCH_SIZE:
            order = generator.sample(range(len(samples)), len(samples))
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((progress + 0.01) / WARM_UP, 0.5 * (1 + math.cos(math.pi * progress)))
        model(**collate(samples.__getitems__(batch))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += len(batch)
    model.eval()
    return seen


def answered(model, processor, samples, method):
    """Values [samples], and how many answers could not be read, which count as zero."""
    lengths = [len(words["text"]) for words in samples.words()]
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    values = np.zeros(len(samples))
    unread = 0
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        batch = processor.collate([{**sample, "label": None} for sample in samples.__getitems__(rows)])
        for row, answer in zip(rows, model.predict(batch, processor.answers, method), strict=True):
            unread += answer.value is None
            values[row] = answer.value or 0.0
    return values, unread


if __name__ == "__main__":
    main()
