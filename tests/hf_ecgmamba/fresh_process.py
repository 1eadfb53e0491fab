"""Runs code as a stranger would: in an empty folder, with nothing of this repository importable."""

import os
import subprocess
import sys

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_ecgmamba", "hf_mse_adapter", "training", "tests", "benchmarks"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
try:
    import hf_ecgmamba
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hf_ecgmamba is importable: this process is not fresh")
"""


def run_fresh(code, folder, **environment):
    """
    Runs `code` in a new process whose working directory is `folder`, without network, with caches of its own.

    Returns:
        `str`: what it printed.

    Raises:
        AssertionError: with its stderr, if it fails.
    """
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")}
    surroundings |= {"HF_HOME": str(folder / ".hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCK + code], cwd=folder, env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
