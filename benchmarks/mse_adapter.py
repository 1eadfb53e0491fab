"""This package against the paper's procedure, side by side in one run: speed of training and inference, memory.

    python benchmarks/mse_adapter.py                                # CPU: some 200 M random parameters, float32
    python benchmarks/mse_adapter.py --llm 7b --dtype bfloat16      # CUDA
    python benchmarks/mse_adapter.py --llm 7b --dtype bfloat16 --quantization 4bit

Both train and ask the same adapter sizes on the same frozen random LLM (a Qwen2 shape with Qwen2's vocabulary) with
the same clips, prompt and label texts (one decimal), eight clips a batch, as the paper does on MOSEI. What differs:

- the paper's procedure: text, audio and vision padded to MOSEI's fixed lengths of 50, 500 and 375, padding unmasked;
  logits at every position; labels padded to four tokens; answers written token by token, four tokens. `PaperProcedure`
  below is all of it. (Its LSTMs stop at the true lengths, so that it is not charged for padded steps there.)
- this package: what `training/run_msa.py` and the pipeline do: clips of like length together, padded to the batch;
  logits where a label is; answers by the likelihood of all 61 candidates in one pass.

A third line asks with the paper's padding but through today's `generate`, which computes logits for the last position
only: the paper's procedure as a rerun would have it.

Clips are drawn with the averages that MOSEI publishes (7.3 s, 19 words): duration log-normal with that mean, clipped
to 1-25 s; 2.6 words a second at 1.3 tokens a word, clipped to 3-50 tokens; audio at 20 Hz and vision at 15 Hz, at most
500 and 375 steps. Times of the two alternate batch by batch, so that a machine whose speed drifts drifts for both; on
a CPU they are CPU seconds of this process (OMP_NUM_THREADS=1 makes them comparable), on a GPU seconds. Peak
activation memory is what one training step allocates beyond weights (on a CPU counted by torch's profiler), on
the longest batch of each.
"""

import argparse
import itertools
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from training.data.tiny_language_model import learn_tokenizer

TEXT_LENGTH, AUDIO_LENGTH, VISION_LENGTH = 50, 500, 375
AUDIO_DIM, VISION_DIM, AUDIO_HIDDEN_SIZE, VISION_HIDDEN_SIZE = 74, 35, 64, 32
LABEL_LENGTH = 4
BATCH_SIZE = 8
LLMS = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
WORDS = (
    "well",
    "really",
    "think",
    "that",
    "this",
    "movie",
    "was",
    "very",
    "good",
    "but",
    "the",
    "story",
    "felt",
    "slow",
)


class PaperProcedure(nn.Module):
    """MSE-Adapter as published (arXiv 2502.12478), around a frozen LLM."""

    def __init__(self, llm, processor):
        super().__init__()
        hidden_size = llm.config.hidden_size
        self.llm = llm.requires_grad_(False)
        self.tokenizer, self.answers = processor.tokenizer, processor.answers
        self.audio_lstm = nn.LSTM(AUDIO_DIM, AUDIO_HIDDEN_SIZE, batch_first=True)
        self.vision_lstm = nn.LSTM(VISION_DIM, VISION_HIDDEN_SIZE, batch_first=True)
        self.audio_linear, self.vision_linear = nn.Linear(AUDIO_HIDDEN_SIZE, 256), nn.Linear(VISION_HIDDEN_SIZE, 256)
        self.text_linear = nn.Linear(hidden_size, 256)
        widths = [hidden_size // scale for scale in (8, 32, 16)]
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Linear(256, width), nn.GELU(), nn.Linear(width, 256)) for width in widths
        )
        self.join, self.project, self.expand = nn.Conv2d(3, 1, 1), nn.Linear(256, hidden_size), nn.Linear(1, 4)
        template = processor("")["input_ids"][0].tolist()
        start = template.index(processor._padding_id)
        self.before, self.after = template[:start], template[start + 4 :]

    def prompts(self, clips):
        """Embeddings [batch, length, hidden] of the whole prompt, text padded to its fixed length."""
        pad = self.tokenizer.pad_token_id
        rows = [self.tokenizer(clip["text"], add_special_tokens=False).input_ids for clip in clips]
        text = self.embed([row[:TEXT_LENGTH] + [pad] * (TEXT_LENGTH - len(row)) for row in rows])
        audio = self._encode(self.audio_lstm, self.audio_linear, clips, "audio", AUDIO_LENGTH)
        vision = self._encode(self.vision_lstm, self.vision_linear, clips, "vision", VISION_LENGTH)
        gate = self.text_linear(text.mean(dim=1).float())
        fused = audio * gate + vision * gate
        fused = self.join(torch.stack([scale(fused) for scale in self.scales], dim=1)[..., None])[:, 0, :, 0]
        pseudo = self.expand(self.project(fused)[..., None]).transpose(1, 2).to(text.dtype)
        before, after = (self.embed([ids] * len(clips)) for ids in (self.before, self.after))
        return torch.cat([before, pseudo, text, after], dim=1)

    def loss(self, clips):
        prompts = self.prompts(clips)
        labels = [self.answers.token_ids[self.answers.index_of(clip["label"])] for clip in clips]
        labels = [[*ids, self.answers.end_token_id] for ids in labels]
        labels = [(ids + [self.tokenizer.pad_token_id] * LABEL_LENGTH)[:LABEL_LENGTH] for ids in labels]
        targets = torch.full((len(clips), prompts.shape[1] + LABEL_LENGTH), -100, device=prompts.device)
        targets[:, -LABEL_LENGTH:] = torch.tensor(labels)
        return self.llm(inputs_embeds=torch.cat([prompts, self.embed(labels)], dim=1), labels=targets).loss

    @torch.no_grad()
    def answer(self, clips):
        inputs, cache, answers = self.prompts(clips), None, []
        for _ in range(LABEL_LENGTH):
            outputs = self.llm(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache, tokens = outputs.past_key_values, outputs.logits[:, -1:].argmax(dim=-1)
            answers.append(tokens)
            inputs = self.llm.get_input_embeddings()(tokens)
        return torch.cat(answers, dim=1)

    @torch.no_grad()
    def answer_by_generate(self, clips):
        prompts = self.prompts(clips)
        mask = torch.ones(prompts.shape[:2], dtype=torch.long, device=prompts.device)
        return self.llm.generate(
            inputs_embeds=prompts, attention_mask=mask, max_new_tokens=LABEL_LENGTH, min_new_tokens=LABEL_LENGTH
        )

    def embed(self, ids):
        return self.llm.get_input_embeddings()(torch.tensor(ids, device=self.llm.device))

    def _encode(self, lstm, linear, clips, modality, length):
        values = torch.zeros(len(clips), length, lstm.input_size)
        for row, clip in zip(values, clips, strict=True):
            row[: len(clip[modality])] = torch.from_numpy(clip[modality])
        lengths = [len(clip[modality]) for clip in clips]
        packed = pack_padded_sequence(values.to(self.llm.device), lengths, batch_first=True, enforce_sorted=False)
        return linear(lstm(packed)[1][0][0])


class ThisPackage:
    def __init__(self, llm, processor):
        config = MseConfig(
            audio_dim=AUDIO_DIM,
            vision_dim=VISION_DIM,
            audio_hidden_size=AUDIO_HIDDEN_SIZE,
            vision_hidden_size=VISION_HIDDEN_SIZE,
            task="regression",
            label_range=(-3.0, 3.0),
            label_step=0.1,
        )
        self.model = MseForConditionalGeneration.from_backbone(llm, config)
        self.processor = processor

    def parameters(self):
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def loss(self, clips):
        return self.model(**self.processor.collate(clips).to(self.model.device)).loss

    def answer(self, clips):
        clips = [{**clip, "label": None} for clip in clips]
        return self.processor.answers.predict(self.model, self.processor.collate(clips).to(self.model.device))


def draw_clips(count, generator):
    mean, sigma = 7.3, 0.6
    clips = []
    for _ in range(count):
        seconds = np.clip(generator.lognormal(np.log(mean) - sigma**2 / 2, sigma), 1, 25)
        words = int(np.clip(seconds * 2.6 * 1.3, 3, TEXT_LENGTH))
        clips.append(
            {
                # each word of WORDS is one token of the benchmark's tokenizer
                "text": " ".join(generator.choice(WORDS, words)),
                "audio": generator.standard_normal((min(int(seconds * 20), AUDIO_LENGTH), AUDIO_DIM), np.float32),
                "vision": generator.standard_normal((min(int(seconds * 15), VISION_LENGTH), VISION_DIM), np.float32),
                "label": float(generator.integers(-30, 31)) / 10,
            }
        )
    return clips


def build_llm(options):
    torch.manual_seed(0)
    shape = LLMS[options.llm] | {"num_key_value_heads": 4, "vocab_size": 151936, "tie_word_embeddings": True}
    config = Qwen2Config(**shape, dtype=options.dtype)
    dtype = getattr(torch, options.dtype)
    with torch.device(options.device):
        llm = Qwen2ForCausalLM(config).to(dtype)
    if options.quantization == "4bit":
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            llm.save_pretrained(folder)
            del llm
            llm = Qwen2ForCausalLM.from_pretrained(folder, quantization_config=quantization, device_map=options.device)
    return llm.eval()


def seconds_of(function, *arguments):
    clock = time.process_time
    if torch.cuda.is_available():
        clock = time.perf_counter
        torch.cuda.synchronize()
    start = clock()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_memory_of(function, *arguments):
    """Bytes that a call allocates at most, beyond what stood before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*arguments)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(*arguments)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def train_step(subject, optimizer, clips):
    subject.loss(clips).backward()
    optimizer.step()
    optimizer.zero_grad()


def batches_of(clips):
    return [clips[start : start + BATCH_SIZE] for start in range(0, len(clips), BATCH_SIZE)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", choices=["none", "4bit"], default="none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=32, help="a multiple of 8")
    options = parser.parse_args()

    clips = draw_clips(options.clips, np.random.default_rng(0))
    tokenizer = learn_tokenizer(
        [" ".join(WORDS) + " <Multimodal></Multimodal>Sentiment intensity from -3.0 to 3.0:"] * 9, 1024
    )
    processor = MseProcessor(tokenizer, AUDIO_DIM, VISION_DIM, label_step=0.1)
    llm = build_llm(options)
    paper = PaperProcedure(llm, processor)
    for name, module in paper.named_children():
        if name != "llm":
            module.to(llm.device)
    package = ThisPackage(llm, processor)
    subjects = {
        "paper": (paper, [parameter for parameter in paper.parameters() if parameter.requires_grad]),
        "package": (package, package.parameters()),
    }
    trained = {name: sum(parameter.numel() for parameter in parameters) for name, (_, parameters) in subjects.items()}
    by_length = sorted(clips, key=lambda clip: len(clip["text"].split()))
    batches = {"paper": batches_of(clips), "package": batches_of(by_length)}
    optimizers = {name: torch.optim.AdamW(parameters, lr=5e-5) for name, (_, parameters) in subjects.items()}

    steps = {
        ("train", "paper"): lambda batch: train_step(paper, optimizers["paper"], batch),
        ("train", "package"): lambda batch: train_step(package, optimizers["package"], batch),
        ("ask", "paper"): paper.answer,
        ("ask", "paper by generate"): paper.answer_by_generate,
        ("ask", "package"): package.answer,
    }
    seconds = dict.fromkeys(steps, 0.0)
    for (_, name), step in steps.items():
        step(batches[name.split()[0]][0])  # warm up
    for index in range(len(batches["paper"])):
        for (kind, name), step in steps.items():
            seconds[kind, name] += seconds_of(step, batches[name.split()[0]][index])
    # the last batch holds the longest clips; the paper's are all equally long
    memory = {name: peak_memory_of(steps["train", name], batches[name][-1]) for name in subjects}

    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()} CPU"
    threads = torch.get_num_threads()
    print(f"{device}, {threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    size = sum(parameter.numel() for parameter in llm.parameters()) / 1e6
    print(f"LLM: {size:.0f} M parameters, {options.dtype}, quantization {options.quantization}")
    print(
        f"trained: {trained}; {len(clips)} clips, {np.mean([len(c['text'].split()) for c in clips]):.1f} tokens each"
    )
    if options.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"all GPU memory at the peak of this package's training: {peak:.1f} GiB")
    rate = {key: len(clips) / value for key, value in seconds.items()}
    print("| | paper's procedure | this package | ratio |\n|---|---|---|---|")
    rows = [
        ("training, samples/s", rate["train", "paper"], rate["train", "package"]),
        ("inference, samples/s", rate["ask", "paper"], rate["ask", "package"]),
        ("inference, paper by today's generate, samples/s", rate["ask", "paper by generate"], rate["ask", "package"]),
    ]
    for name, theirs, ours in rows:
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f}x |")
    theirs, ours = memory["paper"] / 2**20, memory["package"] / 2**20
    print(f"| peak activation memory of training, MiB | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f}x |")


if __name__ == "__main__":
    main()
