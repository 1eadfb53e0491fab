"""`accelerate launch` as one types it, on one machine or on two, which find each other on loopback."""

import os
import socket
import subprocess
import sys


def launch(machines, script, *flags):
    """Start two processes of a script on one machine, or one on each of two; returns the launches (`Popen`)."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [[]]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += [
            "--num_machines",
            str(machines),
            "--main_process_ip",
            "127.0.0.1",
            "--main_process_port",
            str(port),
        ]
        ranks = [["--machine_rank", str(rank)] for rank in range(machines)]
    return [
        subprocess.Popen(
            [*command, *rank, str(script), *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]


def outputs_of(launches, timeout=900):
    """What each launch printed, when all have come to their end; AssertionError where one has failed."""
    outputs = [process.communicate(timeout=timeout)[0] for process in launches]
    assert all(process.returncode == 0 for process in launches), outputs
    return outputs
