import json
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from transformers import AutoConfig

from hf_mse_adapter import MseAdapterConfig, MseAdapterModel, MseConfig
from hf_mse_adapter.tuner_mse_adapter import register

ROOT = Path(__file__).resolve().parents[2]
DIMS = {"audio_dim": 5, "vision_dim": 4}
EMOTIONS = {0: "neutral", 1: "joy", 2: "anger"}
BAD_FIELDS = [
    {"audio_dim": 0},
    {"audio_dim": None},
    {"vision_dim": 2.5},
    {"audio_hidden_size": -1},
    {"vision_hidden_size": True},
    {"mixer_dim": 0},
    {"scales": ()},
    {"scales": (8, 0)},
    {"scales": 8},
    {"num_pseudo_tokens": 0},
    {"dropout": 1.0},
    {"dropout": -0.1},
    {"dropout": float("nan")},
    {"task": "ranking"},
    {"label_range": (1.0, -1.0)},
    {"label_range": (0.0, float("inf"))},
    {"label_range": (0.0, 1.0, 2.0)},
    {"label_step": 0},
    {"label_step": 7.0},
    {"language": "de"},
    {"prompt_template": "no places"},
    {"prompt_template": "{text}{text}{pseudo_tokens}"},
    {"head": "two"},
    {"id2label": {0: "joy"}, "task": "classification"},
    {"id2label": {0: "joy", 2: "anger"}, "task": "classification"},
    {"id2label": {0: "joy", 1: "joy"}, "task": "classification"},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
@pytest.mark.parametrize("config_class", [MseAdapterConfig, MseConfig])
def test_a_bad_field_is_refused_by_name(config_class, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        config_class(**DIMS | fields)


def test_a_classification_needs_labels():
    with pytest.raises(ValueError, match="id2label"):
        MseAdapterConfig(**DIMS, task="classification")


def test_only_causal_language_models():
    with pytest.raises(ValueError, match="task_type"):
        MseAdapterConfig(**DIMS, task_type="SEQ_CLS")


def test_both_configs_come_back_from_their_files(tmp_path):
    fields = {"scales": (4, 2), "task": "classification", "id2label": EMOTIONS, "language": "zh", "head": "beside"}
    adapter_config = MseAdapterConfig(**DIMS, **fields, base_model_name_or_path="some/llm", revision="v1")
    adapter_config.save_pretrained(str(tmp_path / "peft"))
    assert PeftConfig.from_pretrained(str(tmp_path / "peft")) == adapter_config

    config = MseConfig.from_adapter_config(adapter_config, hidden_size=64)
    config.save_pretrained(tmp_path / "own")
    loaded = AutoConfig.from_pretrained(tmp_path / "own")
    assert isinstance(loaded, MseConfig)
    assert (loaded.backbone_name_or_path, loaded.backbone_revision, loaded.hidden_size) == ("some/llm", "v1", 64)
    assert loaded.label2id == {label: index for index, label in EMOTIONS.items()}
    assert loaded.to_adapter_config() == adapter_config


def test_a_regression_has_no_classes():
    assert MseConfig(**DIMS).num_labels == MseAdapterConfig(**DIMS).num_labels == 1
    assert MseConfig(**DIMS).to_adapter_config() == MseAdapterConfig(**DIMS)


def test_registering_twice_changes_nothing():
    before = (len(PeftType), len(PEFT_TYPE_TO_CONFIG_MAPPING))
    register()
    register()
    assert before == (len(PeftType), len(PEFT_TYPE_TO_CONFIG_MAPPING))
    assert PeftType("MSE_ADAPTER") is PeftType.MSE_ADAPTER
    assert PEFT_TYPE_TO_CONFIG_MAPPING["MSE_ADAPTER"] is MseAdapterConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["MSE_ADAPTER"] is MseAdapterModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["MSE_ADAPTER"] == MseAdapterModel.prefix
    assert json.loads(json.dumps(PeftType.MSE_ADAPTER)) == "MSE_ADAPTER"


@pytest.mark.parametrize(
    "first",
    [
        "import hf_mse_adapter\nassert 'peft' not in sys.modules, 'import hf_mse_adapter must stay light'",
        "import hf_mse_adapter.modeling_mse_adapter",
    ],
    ids=["package", "module"],
)
def test_peft_knows_the_adapter_in_whatever_order_things_are_imported(first):
    code = f"import sys\n{first}\nimport peft\nassert 'MSE_ADAPTER' in peft.PEFT_TYPE_TO_TUNER_MAPPING"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
