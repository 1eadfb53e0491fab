"""mse-voice on actors that it was not trained on: accuracy by split, and 24 raw wavs against their stored features.

OMP_NUM_THREADS=1 python benchmarks/mse_voice.py --llm llms/SmolLM2-135M-Instruct
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.audio_features import window_functionals
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from training.reports import markdown_table

ROOT = Path(__file__).resolve().parents[1]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "mse-voice"))
    parser.add_argument("--llm", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data_path", type=Path, default=ROOT.parent / "shared" / "data" / "msa" / "ravdess")
    options = parser.parse_args(arguments)
    pipe = load(options.model, options.llm)
    front_end = pipe.processor.front_ends["audio"]
    rows = {}
    for split in ("valid", "test"):
        table = pd.read_parquet(options.data_path / f"{split}.parquet")
        samples = [
            {"audio": window_functionals(np.stack(steps), front_end["window"], front_end["hop"])}
            for steps in table.audio
        ]
        answers = pipe([{"text": "", **sample} for sample in samples], batch_size=16)
        right = np.array([answer["label"] for answer in answers]) == np.array(table.label)
        rows[split] = [split, len(right), int(right.sum()), float(right.mean())]
        stored, labels = dict(zip(table.id, answers, strict=True)), dict(zip(table.id, table.label, strict=True))
    print(markdown_table(["split", "clips", "right", "accuracy"], list(rows.values())))
    wavs = sorted((options.data_path / "wav").glob("*.wav"))
    raw = {path.stem: pipe(str(path)) for path in wavs}
    same = [raw[name]["label"] == stored[name]["label"] for name in raw]
    right = sum(raw[name]["label"] == labels[name] for name in raw)
    apart = max(
        abs(raw[name]["probabilities"][label] - stored[name]["probabilities"][label])
        for name in raw
        for label in raw[name]["probabilities"]
    )
    print(
        f"\n{len(raw)} wavs of the test actors, raw: {sum(same)} answers as from their stored features; probabilities "
        f"differ by at most {apart:.1e} (batches of 16 against one); {right} are right"
    )


def load(model, llm):
    return MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(model, backbone=AutoModelForCausalLM.from_pretrained(llm)),
        processor=MseProcessor.from_pretrained(model),
        device="cpu",
    )


if __name__ == "__main__":
    main()
