#!/usr/bin/env bash
# av 18.1.0 (FFmpeg with SVT-AV1 4.1), numpy 2.4.6, Linux, as root or with CAP_SYS_NICE; Python 3.11.
# Expected: encoding a few frames leaves the process as it was scheduled before.
# Seen: after the first frame that libsvtav1 encodes, the calling thread has the real-time policy SCHED_FIFO at
# priority 99 and keeps it after the file is closed; processes that it starts from then on inherit it. libx264 does
# nothing of the kind. (A pool of workers that multiply matrices, started after that, waited for BLAS threads of
# ordinary priority that no longer got a core.) Without the right to do so nothing changes, and this exits with 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cd "$folder"
SVT_LOG=1 venv/bin/python - <<'PYTHON'
import os
import subprocess
import sys

import av
import numpy as np

may = os.geteuid() == 0
SCHEDULING = "import os; print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)"


def scheduling():
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def encode(codec):
    with av.open(f"{codec}.mkv", "w") as clip:
        stream = clip.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((128, 128, 3), np.uint8), format="rgb24")
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))


before = scheduling()
encode("libx264")
with_x264 = scheduling()
encode("libsvtav1")
with_av1 = scheduling()
child = subprocess.run([sys.executable, "-c", SCHEDULING], capture_output=True, text=True).stdout.split()
print(f"(policy, priority) before {before}, after libx264 {with_x264}, after libsvtav1 {with_av1}, a child's {child}")
if not may:
    sys.exit("not root: nothing to see") if with_av1 != before else sys.exit(0)
as_described = before == with_x264 == (os.SCHED_OTHER, 0) and with_av1 == (os.SCHED_FIFO, 99) and child == ["1", "99"]
sys.exit(0 if as_described else 1)
PYTHON
