"""Several processes, on one machine or more, by the command that says so: `accelerate launch`."""

import multiprocessing
import os
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

# what accelerate's config files and its command line call alike
LAUNCHED = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
WATCH_SECONDS = 0.5  # between two looks at whether the parent is there
# how the libraries that connect processes say that one of them is gone
CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL")


def run(main):
    """What a script ends with: `main()`, in as many processes as `accelerate launch` names; where another process of
    the run is lost, alone or with its machine, one line says so and this one ends too."""
    honor_num_processes()
    try:
        main()
    except RuntimeError as error:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or not any(sign in str(error) for sign in CONNECTION_LOST):
            raise
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        reason = str(error).splitlines()[0][:80]
        print(
            f"process {rank + 1} of {size} ends, because another was lost ({reason}); start all again, and a training "
            "with --resume_from_checkpoint",
            file=sys.stderr,
            flush=True,
        )
        # no farewell to processes that do not answer
        os._exit(1)


def honor_num_processes():
    """
    Makes `accelerate launch --cpu --num_processes N script.py` run N processes; call it first in a script.

    accelerate 1.15 starts one on each machine, whatever N (huggingface/accelerate#2741: it leaves the rest to mpirun).
    Where this process is that one, it starts its machine's share of N through torch's launcher in its place, waits
    for them, and exits.

    Raises:
        ValueError: the processes cannot be shared out evenly over the machines.
    """
    if "LOCAL_RANK" in os.environ or not runs_on_cpu():
        return
    command = psutil.Process().parent().cmdline()
    if "launch" not in command:
        return
    asked = _asked_of(command[command.index("launch") + 1 :])
    if asked.num_processes == 1:
        return
    if asked.num_processes % asked.num_machines:
        raise ValueError(
            f"num_processes is {asked.num_processes} for {asked.num_machines} machines; expected as many on each"
        )
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    where = ["--standalone", "--master_port", 0]
    if asked.num_machines > 1:
        where = ["--nnodes", asked.num_machines, "--node_rank", asked.machine_rank or 0]
        where += ["--master_addr", asked.main_process_ip, "--master_port", asked.main_process_port]
    share = ["--nproc_per_node", asked.num_processes // asked.num_machines]
    try:
        torch.distributed.run.main([*map(str, [*where, *share]), *sys.argv])
    except ChildFailedError:
        # the child has said why
        sys.exit(1)
    sys.exit()


def _asked_of(arguments):
    """What was asked of `accelerate launch`, by its arguments or by the config file that they name."""
    launched, _ = launch_command_parser().parse_known_args(arguments)
    config = None if launched.config_file is None else load_config_from_file(launched.config_file)
    asked = SimpleNamespace(**{name: getattr(launched, name) for name in LAUNCHED})
    for name, value in vars(asked).items():
        if value is None:
            setattr(asked, name, getattr(config, name, None))
    asked.num_machines = asked.num_machines or 1
    # accelerate counts the processes of all machines
    asked.num_processes = max(asked.num_processes or 1, asked.num_machines)
    return asked


def runs_on_cpu():
    """Whether `accelerate launch --cpu` asked for it, or there is nothing else."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return asked or not torch.accelerator.is_available()


def end_with_parent(*_):
    """
    Ends this process soon after the one that started it, which may be killed with no time to say so; to be called
    first in a worker, as `DataLoader(worker_init_fn=end_with_parent)` or `Pool(initializer=...)`.

    torch's own workers look only between two samples, those of a pool never.
    """
    parent = multiprocessing.parent_process()
    if parent is None or threading.current_thread() is not threading.main_thread():
        return  # no worker process
    threading.Thread(target=_end_when_gone, args=(parent.pid,), daemon=True).start()


def _end_when_gone(pid):
    while os.getppid() == pid:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
