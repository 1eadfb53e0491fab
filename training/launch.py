"""Several processes on a machine without GPUs, by the command that says so."""

import os
import sys

import psutil
import torch
from accelerate.commands.launch import launch_command_parser


def honor_num_processes():
    """
    Makes `accelerate launch --cpu --num_processes N script.py` run N processes; call it first in a script.

    accelerate 1.15 starts one, whatever N (huggingface/accelerate#2741: it leaves the rest to mpirun). Where this
    process is that one, it starts N through torch's launcher in its place, waits for them, and exits.
    """
    if "LOCAL_RANK" in os.environ or not runs_on_cpu():
        return
    command = psutil.Process().parent().cmdline()
    if "launch" not in command:
        return
    launched, _ = launch_command_parser().parse_known_args(command[command.index("launch") + 1 :])
    if launched.cpu and (launched.num_processes or 1) > 1 and (launched.num_machines or 1) == 1:
        import torch.distributed.run

        torch.distributed.run.main(
            ["--nproc_per_node", str(launched.num_processes), "--master_port", "0", "--standalone", *sys.argv]
        )
        sys.exit()


def runs_on_cpu():
    """Whether `accelerate launch --cpu` asked for it, or there is nothing else."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return asked or not torch.accelerator.is_available()
