"""Several processes and machines by `accelerate launch`, here as launches that find each other on loopback."""

import json
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.training.machines import launch, outputs_of
from training.launch import _asked_of
from training.run_msa import main

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
SCRIPT = Path(__file__).resolve().parents[2] / "training" / "run_msa.py"
RECIPE = """
num_samples: 93
label_step: 0.5
tiny_hidden_size: 32
tiny_num_hidden_layers: 1
prompt_template: "{pseudo_tokens}{text}:"
audio_hidden_size: 8
vision_hidden_size: 8
dropout: 0
seeds: [1]
num_train_epochs: 6
learning_rate: 3.0e-3
logging_strategy: steps
logging_steps: 1
disable_tqdm: true
"""


def test_what_was_asked_of_accelerate_is_read_from_flags_and_config(tmp_path):
    asked = _asked_of(["--cpu", "--num_processes", "4", "script.py", "--num_processes", "9"])
    assert (asked.num_processes, asked.num_machines) == (4, 1)
    flags = ["--cpu", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    asked = _asked_of([*flags, "--main_process_port", "29500", "--num_processes", "6", "script.py"])
    assert (asked.num_processes, asked.num_machines, asked.machine_rank) == (6, 2, 1)
    assert (asked.main_process_ip, asked.main_process_port) == ("10.0.0.1", 29500)
    assert _asked_of(["--cpu", "--num_machines", "2", "script.py"]).num_processes == 2  # one on each
    assert _asked_of(["--cpu", "script.py"]).num_processes == 1
    config = tmp_path / "two.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2\n"
        "num_processes: 4\nmachine_rank: 0\nmain_process_ip: 10.0.0.1\nmain_process_port: 29500\n"
    )
    asked = _asked_of(["--config_file", str(config), "--machine_rank", "1", "script.py"])
    assert (asked.num_processes, asked.num_machines, asked.machine_rank) == (4, 2, 1)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_one_of_accelerate(path):
    config = load_config_from_file(str(path))
    launched = launch_command_parser().parse_args(["--config_file", str(path), "--machine_rank", "1", "script.py"])
    launched.main_process_ip = "10.0.0.1" if config.num_machines > 1 else None
    launched, _, _ = _validate_launch_command(launched)
    assert (launched.num_machines, launched.num_processes) == (config.num_machines, config.num_processes)
    assert launched.use_fsdp == ("sharded" in path.stem) and (not launched.use_fsdp or launched.fsdp_version == 2)


def losses(folder):
    history = json.loads((folder / "seed_1" / "history.json").read_text())
    return torch.tensor([entry["loss"] for entry in history if "loss" in entry])


@pytest.mark.slow
def test_two_machines_equal_one_and_losing_one_ends_the_other(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    flags = (
        str(tmp_path / "recipe.yaml"),
        "--output_dir",
        str(tmp_path / "two"),
        "--per_device_train_batch_size",
        "4",
    )
    machines = launch(2, SCRIPT, *flags)
    state = tmp_path / "two" / "seed_1" / "checkpoint-7" / "trainer_state.json"
    while not state.exists() and all(machine.poll() is None for machine in machines):
        time.sleep(0.02)
    # torch's launcher gives its processes groups of their own
    for process in [*psutil.Process(machines[1].pid).children(recursive=True), psutil.Process(machines[1].pid)]:
        process.kill()
    outputs = [machine.communicate(timeout=600)[0] for machine in machines]
    assert machines[0].returncode != 0
    assert "process 1 of 2 ends, because another was lost" in outputs[0]

    outputs_of(launch(2, SCRIPT, *flags, "--resume_from_checkpoint"))
    main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "one"), "--per_device_train_batch_size", "8"])
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-4, rtol=0)
