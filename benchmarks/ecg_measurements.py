"""Heart rate by hf_ecgmamba.measurements against the beats that cardiologists annotated in MIT-BIH, minute by minute.

    python benchmarks/ecg_measurements.py DATA/ecg/mitbih_long/100 DATA/ecg/mitbih_long/201 DATA/ecg/mitbih_long/208

Each record is cut into stretches of `--seconds`. Prints, as a Markdown table, the error of the mean rate in beats a
minute and what could not be measured; below it how many seconds a stretch took.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import wfdb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import open_recording
from hf_ecgmamba.measurements import measure
from training.data.ptbxl import load_ptbxl

# what wfdb calls a beat, of any kind
BEATS = set("NLRBAaJSVrFejnE/fQ?")


# by what a recording's statements say, what the intervals should look like
STATEMENTS = ("NORM", "1AVB", "CLBBB", "CRBBB", "IRBBB", "LAFB", "LNGQT", "AFIB", "STACH", "SBRAD")
INTERVALS = ("heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "axis_degrees", "rmssd_ms")


def by_statement(folder, count):
    print(f"\n| fold 9 | recordings | {' | '.join(INTERVALS)} |\n|---|---|{'---|' * len(INTERVALS)}")
    records = [record for record in load_ptbxl(folder, "all").records if record.split == "validation"]
    for statement in STATEMENTS:
        results = []
        for record in [record for record in records if statement in record.labels][:count]:
            recording = open_recording(f"{record.source}.hea")
            page = recording.read(0, recording.num_samples)
            results.append(measure(page.signal, recording.sampling_rate, page.leads))
        cells = []
        for field in INTERVALS:
            values = [result[field] for result in results if result[field] is not None]
            missing = len(results) - len(values)
            cells.append(
                (f"{np.median(values):.0f}" if values else "-") + (f" ({missing} missing)" if missing else "")
            )
        print(f"| {statement} | {len(results)} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", help="WFDB records with .atr beside them, without their suffix")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--ptbxl", help="folder of PTB-XL")
    parser.add_argument("--count", type=int, default=60, help="recordings of PTB-XL for each statement")
    arguments = parser.parse_args()
    columns = ("record", "stretches", "measured", "mean error, /min", "absolute error, /min", "largest",
               "beats too many or few", "PR, QRS, QT, axis not measured")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    took, stretches = 0.0, 0
    for path in arguments.records:
        recording, annotations = open_recording(f"{path}.hea"), wfdb.rdann(path, "atr")
        rate, failed, errors, beats = recording.sampling_rate, Counter(), [], [0, 0]
        kinds = np.array(annotations.symbol)
        annotated = annotations.sample[np.isin(kinds, list(BEATS))]
        length = round(arguments.seconds * rate)
        starts = range(0, recording.num_samples - length + 1, length)
        for start in starts:
            page, began = recording.read(start, start + length), time.perf_counter()
            measured = measure(page.signal, rate, page.leads)
            took, stretches = took + time.perf_counter() - began, stretches + 1
            failed.update(list(measured["failed"]))
            here = annotated[(annotated >= start) & (annotated < start + length)]
            if measured["heart_rate_bpm"] is None or len(here) < 3:
                continue
            errors.append(measured["heart_rate_bpm"] - 60 * rate / np.diff(here).mean())
            beats = [beats[0] + abs(measured["beats"] - len(here)), beats[1] + len(here)]
        errors = np.array(errors)
        intervals = ", ".join(str(failed[field]) for field in ("pr_ms", "qrs_ms", "qt_ms", "axis_degrees"))
        cells = (Path(path).name, len(starts), len(errors), f"{errors.mean():+.2f}", f"{np.abs(errors).mean():.2f}",
                 f"{np.abs(errors).max():.1f}", f"{beats[0]} of {beats[1]}", intervals)  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{took / stretches:.2f} s for a stretch of {arguments.seconds} s")
    if arguments.ptbxl:
        by_statement(arguments.ptbxl, arguments.count)


if __name__ == "__main__":
    main()
