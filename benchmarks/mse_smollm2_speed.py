"""Training and inference through a frozen SmolLM2: this package, an earlier build of it, and the paper's procedure.

    git worktree add /tmp/earlier 4a3820f
    python benchmarks/mse_smollm2_speed.py --llm llms/SmolLM2-135M-Instruct --earlier /tmp/earlier

CMU-MOSI's texts, eight clips a batch; one step of random audio and vision features each, since MOSI's are utterance
vectors. All subjects take turns batch by batch in one process, so that a drifting machine drifts for all. Seconds are
CPU seconds of this process (OMP_NUM_THREADS=1 makes them comparable).

- paper: `PaperProcedure` of benchmarks/mse_adapter.py: fixed lengths, float32, logits at every position;
- earlier: what that build's processor, model and `answers.predict` do by default (float32, pseudo tokens before the
  text, label tokens learnt, candidates scored);
- pseudo tokens after the text, head on layers 14 to 22: bfloat16, the text without gradients;
- fusion at the head, as recipes/msa_mosi_smollm2.yaml has it: bfloat16, the LLM's states of each text made once and
  kept. Its training rate counts making them, spread over the recipe's epochs; another row counts them in each epoch.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hf_mse_adapter
from benchmarks.mse_adapter import AUDIO_DIM, VISION_DIM, PaperProcedure, peak_memory_of
from training.data.msa_parquet import load_msa_parquet
from training.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 8
LAYERS = tuple(range(14, 23))


class Package:
    """A build of this package around an LLM."""

    def __init__(self, build, llm, tokenizer, **fields):
        sizes = {"audio_dim": AUDIO_DIM, "vision_dim": VISION_DIM, "audio_hidden_size": 64, "vision_hidden_size": 32}
        config = build.MseAdapterConfig(**sizes, **fields)
        self.model = build.MseForConditionalGeneration.from_backbone(llm, config)
        self.processor = build.MseProcessor.from_config(config, tokenizer)
        self.optimizer = torch.optim.AdamW(self.model.adapter.parameters(), lr=5e-5)

    def train(self, clips, **more):
        self.model(**self.processor.collate(clips), **more).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def states(self, clips):
        return self.model.llm_states(**self.processor.collate(clips))

    def answer(self, clips):
        batch = self.processor.collate([{**clip, "label": None} for clip in clips])
        return self.model.predict(batch, self.processor.answers)


class Paper:
    def __init__(self, llm, processor):
        self.procedure = PaperProcedure(llm, processor)
        trained = [parameter for parameter in self.procedure.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5)

    def train(self, clips):
        self.procedure.loss(clips).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def answer(self, clips):
        return self.procedure.answer(clips)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "msa" / "mosi_uttfeat")
    parser.add_argument("--llm", type=Path, default=ROOT / "llms" / "SmolLM2-135M-Instruct")
    parser.add_argument("--earlier", type=Path, required=True, help="a checkout of the earlier build")
    parser.add_argument("--batches", type=int, default=3)
    options = parser.parse_args()

    clips = draw_clips(options)
    tokenizer = AutoTokenizer.from_pretrained(options.llm)
    plain = AutoModelForCausalLM.from_pretrained(options.llm, dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(options.llm, dtype=torch.bfloat16)
    earlier = Package(build_in(options.earlier), plain, tokenizer)
    head = {"head": "alone", "head_layers": LAYERS}
    after = Package(hf_mse_adapter, half, tokenizer, **head, prompt_template="<|im_start|>{text}{pseudo_tokens}")
    late = Package(hf_mse_adapter, half, tokenizer, **head, fusion="head", prompt_template="<|im_start|>{text}")
    paper = Paper(plain, earlier.processor)

    by_length = sorted(clips, key=lambda clip: len(clip["text"]))
    batches = [by_length[start : start + BATCH_SIZE] for start in range(0, len(by_length), BATCH_SIZE)]
    kept = {}
    steps = {
        ("train", "paper"): paper.train,
        ("train", "earlier build"): earlier.train,
        ("train", "pseudo tokens after the text, head on layers"): after.train,
        ("states", "fusion at the head"): lambda batch: kept.update({id(batch): late.states(batch)}),
        ("kept", "fusion at the head"): lambda batch: late.train(batch, llm_states=kept[id(batch)]),
        ("answer", "paper"): paper.answer,
        ("answer", "earlier build"): earlier.answer,
        ("answer", "pseudo tokens after the text, head on layers"): after.answer,
        ("answer", "fusion at the head"): late.answer,
    }
    for step in steps.values():
        step(batches[0])  # warm up
    seconds = dict.fromkeys(steps, 0.0)
    for batch in batches:
        for key, step in steps.items():
            start = time.process_time()
            step(batch)
            seconds[key] += time.process_time() - start

    recipe = ROOT / "training" / "recipes" / "msa_mosi_smollm2.yaml"
    epochs = recipe_value(recipe, "num_train_epochs")
    made, each = seconds.pop(("states", "fusion at the head")), seconds.pop(("kept", "fusion at the head"))
    seconds["train", "fusion at the head, states made in every epoch"] = made + each
    seconds["train", f"fusion at the head, states kept over {epochs} epochs"] = made / epochs + each
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {len(clips)} clips")
    print("| | samples/s | times the paper's | times the earlier build's |\n|---|---|---|---|")
    for kind in ("train", "answer"):
        for (other, name), spent in seconds.items():
            if other == kind:
                ratios = [seconds[kind, base] / spent for base in ("paper", "earlier build")]
                print(f"| {kind}: {name} | {len(clips) / spent:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    longest = batches[-1]
    subjects = {"paper": paper, "earlier build": earlier, "after the text": after, "at the head": late}
    for name, subject in subjects.items():
        print(f"peak of a training step, {name}: {peak_memory_of(subject.train, longest) / 2**20:.0f} MiB")


def draw_clips(options):
    texts = load_msa_parquet(options.data, "regression")["train"]["text"][:]
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(texts), options.batches * BATCH_SIZE, replace=False)
    return [
        {
            "text": str(texts[index]).capitalize(),
            "audio": generator.standard_normal((1, AUDIO_DIM), np.float32),
            "vision": generator.standard_normal((1, VISION_DIM), np.float32),
            "label": float(generator.integers(-30, 31)) / 10,
        }
        for index in chosen
    ]


def build_in(checkout):
    """The package in another checkout, beside this one: its own imports are relative."""
    place = checkout / "hf_mse_adapter" / "__init__.py"
    where = {"submodule_search_locations": [str(place.parent)]}
    spec = importlib.util.spec_from_file_location("earlier_mse_adapter", place, **where)
    sys.modules["earlier_mse_adapter"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def recipe_value(path, name):
    from training.run_msa import ARGUMENTS

    return int(read_recipe(path, {field for group in ARGUMENTS for field in group.__dataclass_fields__})[name])


if __name__ == "__main__":
    main()
