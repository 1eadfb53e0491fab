"""A frozen LLM that several processes share out (FSDP2, ZeRO-3): losses, answers, files are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_mse_adapter import MseAdapterConfig, MseConfig, MseForConditionalGeneration
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_batch

PROCESS = Path(__file__).with_name("sharded_process.py")
CASES = ("model-none-torch-untied", "peft-lower-torch-untied", "peft-alone-accelerate-tied")
MORE_CASES = (
    *(f"{kind}-{head}-torch-tied" for kind in ("model", "peft") for head in ("alone", "lower", "beside", "words")),
    *(
        f"{kind}-none-{way}-{tied}"
        for kind in ("model", "peft")
        for way in ("accelerate", "accelerate_from_one")
        for tied in ("tied", "untied")
    ),
    "model-lower-accelerate-tied",
    "peft-lower-accelerate-untied",
    "model-alone-accelerate_from_one-tied",
)
REFUSED = "model-lower-accelerate_from_one-tied"


def run_sharded(folder, *cases):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", PROCESS, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*map(str, command), *cases], capture_output=True, text=True, env=environment, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [result["case"] for result in results] == list(cases)
    return results


def check(results):
    for result in results:
        assert result["frozen"] > 15 and result["all_divided"], result
        assert result["same_weights"] and result["same_likeness"], result
        assert max(result["loss"], result["answers"], result["weights"]) < 1e-5, result


def test_fsdp2_equals_one_process(tmp_path):
    check(run_sharded(tmp_path, *CASES))


@pytest.mark.slow
def test_fsdp2_with_every_head_and_as_accelerate_does_it(tmp_path):
    *results, refused = run_sharded(tmp_path, *MORE_CASES, REFUSED)
    check(results)
    assert "fsdp_cpu_ram_efficient_loading" in refused["error"]


def test_an_llm_without_weights_is_named():
    model = MseForConditionalGeneration.from_backbone(
        build_backbone(), MseAdapterConfig(audio_dim=5, vision_dim=4, scales=(2, 4, 4))
    )
    model.language_model.to("meta")
    with pytest.raises(ValueError, match="on the meta device"):
        model(**build_batch())


def test_a_state_dict_with_the_llm_in_it_is_saved_without(tmp_path):
    """As DeepSpeed gathers it."""
    model = MseForConditionalGeneration(MseConfig(audio_dim=5, vision_dim=4, scales=(2, 4, 4)), build_backbone())
    everything = dict(model.named_parameters())
    assert any(name.startswith("language_model.") for name in everything)
    model.save_pretrained(tmp_path, state_dict=everything)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.1 * sum(
        value.numel() * 4 for name, value in everything.items() if name.startswith("adapter.")
    )
    again = MseForConditionalGeneration.from_pretrained(tmp_path, backbone=build_backbone())
    for name, value in model.adapter.state_dict().items():
        assert torch.equal(again.adapter.state_dict()[name], value), name


ZERO3 = """
import sys
import torch, transformers
from peft import get_peft_model
from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor
from tests.hf_mse_adapter.tiny_backbones import build_batch, build_tokenizer

folder = sys.argv[1]
batch, processor = build_batch(), MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4)
config = MseAdapterConfig(audio_dim=5, vision_dim=4, dropout=0.0, scales=(2, 4, 4))
if sys.argv[2] == "shared":
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0,
             "stage3_gather_16bit_weights_on_model_save": True}, "train_micro_batch_size_per_gpu": 3}
    options = {"deepspeed": zero3}
else:
    options = {}
args = transformers.TrainingArguments(folder + "/runs", use_cpu=True, per_device_train_batch_size=3, max_steps=2,
    learning_rate=0.1, optim="sgd", report_to=[], save_strategy="no", remove_unused_columns=False, **options)
llm = transformers.AutoModelForCausalLM.from_pretrained(folder + "/llm")
if options:
    assert llm.get_input_embeddings().weight.numel() == 0
torch.manual_seed(0)
for kind in sys.argv[3:]:
    model = get_peft_model(llm, config) if kind == "peft" else MseForConditionalGeneration.from_backbone(llm, config)
    trainer = transformers.Trainer(model, args, train_dataset=[{}] * 6, data_collator=lambda _: dict(batch))
    trainer.train()
    answers = (model if kind == "model" else model.base_model).predict(batch, processor.answers)
    print("ANSWERS", [round(answer.value, 4) for answer in answers])
    trainer.save_model(folder + "/" + sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "peft"])
def test_zero3_equals_one_process(tmp_path, kind):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (DS_BUILD_OPS=0 pip install deepspeed)")
    build_backbone().save_pretrained(tmp_path / "llm")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    root = str(Path(__file__).resolve().parents[2])
    answers = {}
    for way, more in (("alone", {}), ("shared", place | {"DS_ACCELERATOR": "cpu"})):
        ran = subprocess.run(
            [sys.executable, "-c", ZERO3, str(tmp_path), way, kind],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root} | more,
            timeout=600,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        answers[way] = next(line for line in ran.stdout.splitlines() if "ANSWERS" in line).split("ANSWERS")[1]
    assert answers["alone"] == answers["shared"]
    sizes = [sum(file.stat().st_size for file in (tmp_path / way).glob("*.safetensors")) for way in answers]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0]
