"""From nothing to a picture of an ECG with its findings, in minutes on a laptop: `python training/demo_ecg.py`.

First a network that comes trained reads a real ECG, in a fresh process that has nothing but its folder. Then the demo
trains an ECGMamba on simulated recordings, then forgets all about this repository: a fresh process, which can import
only installed libraries, loads the folder that the training left, reads an ECG file and draws it.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import run_ecg
from training.data.simulated_ecg import simulate_ecg
from training.fresh_process import run_fresh

ROOT = Path(__file__).resolve().parents[1]
PATIENT_FINDINGS = ("AFIB", "CLBBB")
# outside of the simulated training set, whose patients have the seeds (0, 0), (0, 1), ...
PATIENT_SEED = 20_000

DELIVERED = ROOT / "model_cards" / "ecgmamba-ptbxl"
READ = """
from transformers import pipeline

ecg = pipeline("ecg-classification", model="ecgmamba-ptbxl", trust_remote_code=True, device="cpu")
result, picture = ecg.plot("ecgmamba-ptbxl/example.csv", "ptbxl.png")
for finding in result["findings"]:
    if finding["present"]:
        print(f"{finding['label']:<6} {finding['score']:6.1%}  {finding['name']}")
"""
FRESH = """
from transformers import AutoModelForSequenceClassification, pipeline

model = AutoModelForSequenceClassification.from_pretrained("ecgmamba", trust_remote_code=True)
print(f"{type(model).__name__} with {model.num_parameters():,} parameters")
ecg = pipeline("ecg-classification", model="ecgmamba", trust_remote_code=True, device="cpu")
result, picture = ecg.plot("record.hea", "ecg.png")
for finding in result["findings"]:
    print(f"{finding['label']:<6} {finding['score']:6.1%} {'found' if finding['present'] else ''}".rstrip())
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output")
    parser.add_argument("--recipe", type=Path, default=ROOT / "training" / "recipes" / "ecg_simulated.yaml")
    options, overrides = parser.parse_known_args(arguments)  # what is unknown here goes to the training
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def announce(text):
        print(f"\n[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    announce(f"A real ECG (record 3041 of PTB-XL) and a trained network ({DELIVERED.name}). A fresh process, which")
    print("       knows nothing of this repository, runs:")
    shutil.rmtree(options.output / DELIVERED.name, ignore_errors=True)
    shutil.copytree(DELIVERED, options.output / DELIVERED.name)
    show(READ, options.output)
    announce(f"Look at {options.output / 'ptbxl.png'}. Training an ECGMamba of our own as {options.recipe.name} says")
    shutil.rmtree(options.output / "ecgmamba", ignore_errors=True)
    run_ecg.main([str(options.recipe), "--output_dir", str(options.output / "ecgmamba"), *overrides])
    announce(f"A patient with {' and '.join(PATIENT_FINDINGS)}, as a WFDB file: {options.output / 'record.hea'}")
    write_patient(options.output)
    announce("A fresh process, which knows nothing of this repository, runs:")
    show(FRESH, options.output)
    announce(f"Done. Look at {options.output / 'ecg.png'}")
    print("       A file of your own:")
    print(f"       python -m hf_ecgmamba FILE --model {DELIVERED.relative_to(ROOT)} --plot my.png")


def show(code, folder):
    print("\n".join(f"    {line}".rstrip() for line in code.strip().splitlines()))
    print("\nand prints:")
    print("\n".join(f"    {line}" for line in run_fresh(code, folder).splitlines()))


def write_patient(folder):
    """record.hea and record.dat in `folder`: 10 s at 500 Hz, microvolts in 16 bits."""
    import wfdb

    patient = simulate_ecg(PATIENT_FINDINGS, seed=PATIENT_SEED)
    wfdb.wrsamp(
        "record",
        fs=patient["sampling_rate"],
        units=["mV"] * 12,
        sig_name=list(patient["leads"]),
        p_signal=patient["array"].T.astype(np.float64),
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(folder),
    )


if __name__ == "__main__":
    main()
