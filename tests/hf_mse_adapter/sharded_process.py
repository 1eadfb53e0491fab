"""One of several processes that share an LLM out by FSDP2, and that compare what they get with one process alone.

    python -m torch.distributed.run --nproc_per_node 2 tests/hf_mse_adapter/sharded_process.py FOLDER CASE...

A case is KIND-HEAD-WAY-TIED, as `model-none-torch-untied`. For each, the first process writes a line of JSON: how far
it was from one process's. All processes read the same batch, so that the mean of their gradients is each one's.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import get_peft_model
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor
from hf_mse_adapter.backbone_likeness import likeness_of
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_batch, build_tokenizer

HEADS = {
    "none": {},
    "alone": {"head": "alone"},
    "lower": {"head": "alone", "head_layers": (1,)},
    "beside": {"head": "beside", "head_layers": (1, 2)},
    "words": {"head": "alone", "head_layers": (1, 2), "fusion": "head"},
}


def build(kind, head, tied):
    torch.manual_seed(0)
    llm = build_backbone(tie_word_embeddings=tied)
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, dropout=0.0, scales=(2, 4, 4), **HEADS[head])
    if kind == "peft":
        return get_peft_model(llm, config)
    return MseForConditionalGeneration.from_backbone(llm, config)


def shard(model, way):
    if way == "torch":
        llm = next(module for module in model.modules() if type(module).__name__ == "LlamaForCausalLM")
        for layer in llm.model.layers:
            fully_shard(layer)
        return fully_shard(model)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=way == "accelerate_from_one",
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=distributed.get_rank() == 0,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)


def trained(model, batch, answers, methods):
    """Losses of three steps, and answers before, between and after them."""
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    losses, values = [], []

    def ask():
        model.eval()
        target = model if isinstance(model, MseForConditionalGeneration) else model.base_model
        for method in methods:
            values.append([prediction.value for prediction in target.predict(batch, answers, method)])
        model.train()

    if isinstance(model, MseForConditionalGeneration):
        ask()
    model.train()
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        ask()
    with torch.no_grad():
        losses.append(float(model.eval()(**batch).loss))
    ask()
    return losses, values


def saved(model, folder, whole):
    """The weights that were saved (`dict`), all of the adapter."""
    if isinstance(model, MseForConditionalGeneration):
        model.save_pretrained(folder)
        file = folder / "model.safetensors"
    else:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = None if whole else get_model_state_dict(model, options=options)
        if distributed.get_rank() == 0:
            model.save_pretrained(folder, state_dict=state_dict)
        file = folder / "adapter_model.safetensors"
    return load_file(file) if distributed.get_rank() == 0 else {}


def distance(first, second):
    return max(
        map(
            abs,
            (torch.tensor(first, dtype=torch.double) - torch.tensor(second, dtype=torch.double)).flatten().tolist(),
        )
    )


def compare(kind, head, way, tied, folder):
    answers = MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4).answers
    batch = build_batch() | ({} if head == "none" else {"label_values": torch.tensor([1.0, -2.5, 0.3])})
    if head == "words":
        del batch["pseudo_token_mask"]
    methods = (["head"] if head != "none" else []) + (["expected", "constrained"] if head != "words" else [])
    alone = build(kind, head, tied)
    expected = trained(alone, batch, answers, methods)
    expected_weights = saved(alone, folder / "alone", whole=True)

    if way == "accelerate_from_one":
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    model = build(kind, head, tied)
    if way == "accelerate_from_one" and distributed.get_rank() > 0:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    model = shard(model, way)
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    divided = [isinstance(each, DTensor) and each.to_local().numel() < each.numel() for each in frozen]
    found = trained(model, batch, answers, methods)
    likeness = likeness_of(alone.get_base_model() if kind == "peft" else alone.language_model)
    llm = model.get_base_model() if kind == "peft" else model.language_model
    same_likeness = likeness_of(llm) == likeness
    weights = saved(model, folder / "sharded", whole=False)
    if distributed.get_rank() == 0:
        differences = [float((weights[name] - value).abs().max()) for name, value in expected_weights.items()]
        result = {
            "case": f"{kind}-{head}-{way}-{'tied' if tied else 'untied'}",
            "frozen": len(frozen),
            "all_divided": all(divided),
            "loss": distance(found[0], expected[0]),
            "answers": distance(found[1], expected[1]),
            "same_weights": sorted(weights) == sorted(expected_weights),
            "weights": max(differences),
            "same_likeness": same_likeness,
        }
        print(json.dumps(result), flush=True)


def main():
    folder = Path(sys.argv[1])
    distributed.init_process_group("gloo")
    for number, case in enumerate(sys.argv[2:]):
        kind, head, way, tied = case.split("-")
        try:
            compare(kind, head, way, tied == "tied", folder / str(number))
        except ValueError as error:
            if distributed.get_rank() == 0:
                print(json.dumps({"case": case, "error": str(error)}), flush=True)
        os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
