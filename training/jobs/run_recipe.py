# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch>=2.9",
#     "transformers>=5.23,<6",
#     "peft>=0.21,<0.22",
#     "accelerate>=1.10",
#     "datasets>=4.5",
#     "evaluate>=0.4.6",
#     "safetensors>=0.8",
#     "huggingface_hub>=1.31",
#     "numpy>=2.0",
#     "scipy>=1.13.1",
#     "pandas>=2.2.3",
#     "pyarrow>=21",
#     "pyyaml>=6.0.2",
#     "tqdm>=4.67",
#     "filelock>=3.16",
#     "numba>=0.61",
#     "psutil>=6",
#     "wfdb>=4.3",
#     "av>=18,<20",
#     "h5py>=3.12.1",
#     "pyedflib>=0.1.38",
#     "matplotlib>=3.9",
#     "scikit-learn>=1.5",
#     "gguf>=0.18",
# ]
# ///
"""A recipe as one command on the Hub's machines, for people without a GPU; or, by uv, anywhere.

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN training/jobs/run_recipe.py \\
        --code USER/CODE --recipe training/recipes/ecg_simulated.yaml --publish USER/MODEL

CODE says where this repository's files are: a repository of the Hub that holds a copy of them (`hf upload USER/CODE
.`), an address that git clones, or a folder; without it, the folder in which this script lies. `--data USER/DATASET`
brings files of a data set beforehand and gives their folder to the recipe as --data_dir (ECG) or --data_path (MSE).
Further arguments go to the training as they are. What is trained lies in `trained/`, and with `--publish` goes to the
Hub: a job's disk goes when it ends.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--recipe", required=True, help="a yaml file, relative to the code; ecg_* or msa_*")
    parser.add_argument("--code", help="a repository of the Hub, an address for git, or a folder")
    parser.add_argument("--data", metavar="USER/DATASET", help="a data set's repository, whose files are fetched")
    parser.add_argument("--output", default="trained", help="folder of what is trained")
    parser.add_argument("--publish", metavar="USER/NAME", help="put the trained model there")
    options, further = parser.parse_known_args(arguments)
    code = fetch_code(options.code)
    script = script_of(code, options.recipe)
    output = Path(options.output).resolve()
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", str(script), str(code / options.recipe)]
    command += ["--output_dir", str(output), *further]
    if options.data:
        command += ["--data_dir" if script.name == "run_ecg.py" else "--data_path", fetch_data(options.data)]
    # the code is no package of this environment
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])}
    run(command, code, environment)
    print(f"trained: {output}", flush=True)
    if options.publish:
        run(["-m", "training.publish", str(model_in(output)), "--repo_id", options.publish], code, environment)


def fetch_code(where):
    """The folder of the repository's files; ValueError where it holds no trainings."""
    if where is None:
        folder = Path(__file__).resolve().parents[2]
    elif Path(where).is_dir():
        folder = Path(where).resolve()
    elif "://" in where:
        folder = Path("code").resolve()
        subprocess.run(["git", "clone", "--depth", "1", where, str(folder)], check=True)
    else:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(where))
    if not (folder / "training" / "run_ecg.py").is_file():
        raise ValueError(
            f"code is {where}, in which there is no training/run_ecg.py; expected this repository's files"
        )
    return folder


def script_of(code, recipe):
    """Which training a recipe is for: its file's name says so."""
    kind = Path(recipe).name.split("_")[0]
    if kind not in ("ecg", "msa"):
        raise ValueError(f"recipe is {recipe}; expected a name that begins with ecg_ or msa_")
    if not (code / recipe).is_file():
        raise FileNotFoundError(f"there is no recipe {recipe} in {code}")
    return code / "training" / f"run_{kind}.py"


def fetch_data(name):
    from huggingface_hub import snapshot_download

    return snapshot_download(name, repo_type="dataset")


def model_in(output):
    """What a training left: the folder itself, or the first of its seeds."""
    folders = [output, *sorted(output.glob("seed_*"))]
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"{output} holds no trained model (config.json)")


def run(command, code, environment):
    done = subprocess.run([sys.executable, *command], cwd=code, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"run_recipe: {' '.join(str(error).split())}") from None
