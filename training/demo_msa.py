"""From nothing to a feeling read in words, voice and face, in two to three minutes: `python training/demo_msa.py`.

Brings a small real LLM to disk, freezes it, and trains two MSE-Adapters for it on generated clips, one that reads how
strong a sentiment is and one that reads an emotion. Then it forgets all about this repository: a fresh process, which
can import only installed libraries, puts both around the one LLM in memory, reads clips that they have never seen,
whole and with a modality missing, and asks the LLM an ordinary question before, with and after them.

Where the LLM is not to be had, a tiny random one takes its place, for which one adapter is trained.
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
from training.get_llm import REPOSITORY, get_llm

ROOT = Path(__file__).resolve().parents[1]
# the training set is made with seed 0
CLIP_SEED = 20_000

FRESH = """
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module as code_of

llm = AutoModelForCausalLM.from_pretrained(LLM)
tokenizer = AutoTokenizer.from_pretrained(LLM)
question = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)

def chat():
    answer = llm.generate(**question, max_new_tokens=12, do_sample=False)[0, question["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), llm(**question).logits

before, logits = chat()
read = {}
for name in ("mse_adapter", "emotion_adapter"):
    model = code_of("modeling_mse_adapter.MseForConditionalGeneration", name).from_pretrained(name, backbone=llm)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    read[name] = code_of("pipeline_multimodal_sentiment.MultimodalSentimentPipeline", name)(model, processor=processor)
    trained = sum(parameter.numel() for parameter in model.adapter.parameters())
    print(f"{name}: {trained:,} trained parameters around a {type(llm).__name__} of {llm.num_parameters():,}")
for name in ("clip_0", "clip_1", "clip_2"):
    clip = {"text": open(f"{name}.txt").read(), "audio": f"{name}_audio.npy", "vision": f"{name}_vision.npy"}
    sentiment, without = read["mse_adapter"](clip), read["mse_adapter"]({**clip, "vision": None})
    emotion = read["emotion_adapter"](clip)["label"]
    print(f"{clip['text']:<46} {sentiment['value']:+.1f}, without the face {without['value']:+.1f}; {emotion}")
beside, logits_beside = chat()
del read, model
after, logits_after = chat()
same = torch.equal(logits, logits_beside) and torch.equal(logits, logits_after)
print(f"the LLM, asked for the capital of France: {before!r}; with the adapters: {beside!r}; after: {after!r}")
print("its logits are", "bit-identical" if same else "NOT THE SAME")
"""

FRESH_TINY = """
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
    parser.add_argument("--llm", type=Path, default=ROOT / "llms" / REPOSITORY.split("/")[1], help="its folder")
    parser.add_argument("--tiny", action="store_true", help="take the tiny random LLM")
    options, overrides = parser.parse_known_args(arguments)  # what is unknown here goes to the training
    started = time.perf_counter()

    def announce(text):
        print(f"\n[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    runs, folder = options.output / "runs", options.output / "mse_adapter"
    for old in (runs, folder, options.output / "emotion_adapter"):
        shutil.rmtree(old, ignore_errors=True)
    llm = None if options.tiny else real_llm(options.llm, announce)
    if llm is None:
        announce("Training an MSE-Adapter for a tiny random LLM, which knows no English, as msa_simulated.yaml says")
        train("msa_simulated.yaml", runs, folder, *overrides)
        code = FRESH_TINY
    else:
        announce("Training a sentiment adapter for it, as msa_demo.yaml says")
        train("msa_demo.yaml", runs / "sentiment", folder, "--backbone", str(llm), *overrides)
        announce("Training an emotion adapter for the same LLM")
        emotion = ("--task", "classification", "--backbone", str(llm), *overrides)
        train("msa_demo.yaml", runs / "emotion", options.output / "emotion_adapter", *emotion)
        code = FRESH.replace("(LLM)", f"({str(llm.resolve())!r})")
    labels = write_clips(options.output)
    announce("A fresh process, which knows nothing of this repository, runs:")
    print("\n".join(f"    {line}".rstrip() for line in code.strip().splitlines()))
    print("\nand prints:")
    print("\n".join(f"    {line}" for line in run_fresh(code, options.output).splitlines()))
    print(f"    (the clips were made as {', '.join(f'{label:+.1f}' for label in labels)})")
    announce(f"Done. The curves: {next(runs.rglob('training_curves.png'))}")
    print("       A clip of your own:")
    own = "" if llm is None else f" --backbone {llm}"
    print(f"       python -m hf_mse_adapter --model {folder}{own} --text TEXT --audio A.npy --vision V.npy")


def real_llm(folder, announce):
    """The folder of the real LLM, brought there if need be; None where it is not to be had."""
    announce(f"Bringing a real LLM to {folder}" if not folder.exists() else f"The real LLM in {folder}")
    try:
        return get_llm(folder)
    except OSError as error:
        print(f"    {error}")
        return None


def train(recipe, runs, folder, *overrides):
    """One training by a recipe; its model, without checkpoints, as `folder`."""
    recipe = str(ROOT / "training" / "recipes" / recipe)
    run_msa.main([recipe, "--output_dir", str(runs), "--seeds", "1", *overrides])
    shutil.copytree(runs / "seed_1", folder, ignore=shutil.ignore_patterns("checkpoint-*"))


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
