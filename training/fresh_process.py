"""Code as a stranger runs it: in a folder of its own, with nothing of this repository importable."""

import os
import subprocess
import sys
import tempfile

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
    Runs `code` in a new process whose working directory is `folder`, offline, with caches of its own, and only the
    installed libraries to import.

    Returns:
        `str`: what it printed.

    Raises:
        RuntimeError: with its stderr, if it fails.
    """
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")}
    surroundings |= {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", **environment}
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", BLOCK + code],
            cwd=folder,
            env={**surroundings, "HF_HOME": cache},
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise RuntimeError(f"the fresh process ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
