"""From nothing to a feeling read in words, voice and face, in two minutes on a laptop: `python training/demo_msa.py`.

Builds a tiny LLM, freezes it, and trains an MSE-Adapter for it on generated clips; then forgets all about this
repository: a fresh process, which can import only installed libraries, loads the folder that the training left and
reads clips it has never seen, whole and with a modality missing.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import run_msa
from training.data.simulated_msa import load_simulated_msa
from training.fresh_process import run_fresh

ROOT = Path(__file__).resolve().parents[1]
# the training set is made with seed 0
CLIP_SEED = 20_000

FRESH = """
from transformers import AutoModel, pipeline

model = AutoModel.from_pretrained("mse_adapter", trust_remote_code=True)
trained = sum(parameter.numel() for parameter in model.adapter.parameters())
print(f"{type(model).__name__}: {trained:,} trained parameters for a frozen {type(model.language_model).__name__}")
read = pipeline("multimodal-sentiment", model="mse_adapter", trust_remote_code=True, device="cpu")
for name in ("clip_0", "clip_1", "clip_2"):
    clip = {"text": open(f"{name}.txt").read(), "audio": f"{name}_audio.npy", "vision": f"{name}_vision.npy"}
    value, without = read(clip)["value"], read({**clip, "vision": None})["value"]
    print(f"{clip['text']:<50} {value:+.1f}   without the face {without:+.1f}")
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output" / "sentiment")
    parser.add_argument("--recipe", type=Path, default=ROOT / "training" / "recipes" / "msa_simulated.yaml")
    options, overrides = parser.parse_known_args(arguments)  # what is unknown here goes to the training
    started = time.perf_counter()

    def announce(text):
        print(f"\n[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    runs, folder = options.output / "runs", options.output / "mse_adapter"
    for old in (runs, folder):
        shutil.rmtree(old, ignore_errors=True)
    announce(f"Training an MSE-Adapter for a tiny random LLM as {options.recipe.name} says")
    run_msa.main([str(options.recipe), "--output_dir", str(runs), "--seeds", "1", *overrides])
    shutil.copytree(runs / "seed_1", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    labels = write_clips(options.output)
    announce("A fresh process, which knows nothing of this repository, runs:")
    print("\n".join(f"    {line}".rstrip() for line in FRESH.strip().splitlines()))
    print("\nand prints:")
    print("\n".join(f"    {line}" for line in run_fresh(FRESH, options.output).splitlines()))
    print(f"    (the clips were made as {', '.join(f'{label:+.1f}' for label in labels)})")
    announce(f"Done. The curves: {runs / 'training_curves.png'}")
    print("       A clip of your own:")
    print(f"       python -m hf_mse_adapter --model {folder} --text TEXT --audio A.npy --vision V.npy")


def write_clips(folder, count=3):
    """clip_N.txt, clip_N_audio.npy and clip_N_vision.npy in `folder`; returns the clips' labels."""
    clips = load_simulated_msa(6 * count, seed=CLIP_SEED)["test"]
    for index in range(count):
        clip = clips[index]
        (folder / f"clip_{index}.txt").write_text(str(clip["text"]), encoding="utf-8")
        for modality in ("audio", "vision"):
            np.save(folder / f"clip_{index}_{modality}.npy", clip[modality])
    return [float(label) for label in clips["label"][:count]]


if __name__ == "__main__":
    main()
