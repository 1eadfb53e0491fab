"""What importing the packages costs, and what it needs."""

import subprocess
import sys

import pytest

OPTIONAL = ("numba", "triton", "mamba_ssm", "causal_conv1d", "gradio", "neurokit2", "bitsandbytes")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("package", ["hf_ecgmamba", "hf_mse_adapter"])
def test_the_import_loads_no_heavy_library(package):
    """Under 0.3 s beyond torch and transformers: what takes longer than that must not be loaded by the import."""
    code = f"""
import sys, torch, transformers
before = set(sys.modules)
import {package}
print(*{{name.split(".")[0] for name in set(sys.modules) - before}}, "transformers.modeling_utils" in sys.modules)
"""
    loaded = run(code).split()
    assert loaded[-1] == "False"
    assert not {"peft", "scipy", "pandas", "matplotlib", "wfdb", "h5py", "numba", "triton"} & set(loaded)


@pytest.mark.parametrize("package", ["hf_ecgmamba", "hf_mse_adapter"])
def test_every_name_loads_without_the_optional_libraries(package):
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # any import of it now fails
import {package}
assert {package}.__all__
for name in {package}.__all__:
    assert getattr({package}, name) is not None
"""
    run(code)


def test_touching_a_class_registers_the_auto_classes():
    code = """
import transformers
from hf_ecgmamba import EcgMambaConfig, EcgMambaForSequenceClassification
config = transformers.AutoConfig.for_model("ecgmamba", hidden_size=16, num_hidden_layers=1)
model = transformers.AutoModelForSequenceClassification.from_config(config)
assert type(model) is EcgMambaForSequenceClassification
assert "ecg-classification" in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
"""
    run(code)
