"""What reading a clip costs: CPU seconds per second of clip by front end, memory by length, two processes against one.

    OMP_NUM_THREADS=1 python benchmarks/clips.py [--speech_recognizer llms/whisper-tiny.en]

Clips are generated: a moving face (320x240, 25 frames a second, H.264) and a voice of tones (AAC, 16 kHz).
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.clip_decoding import Clip
from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS, ClipReader
from tests.hf_mse_adapter.odd_clips import voice, write
from training.data.clips import ClipRow, Extraction, begin_alone, make_features
from training.reports import markdown_table

PARTS = {
    "decoding alone": (),
    "voice (log-mel)": ("audio",),
    "face": ("vision",),
    "voice and face": ("audio", "vision"),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech_recognizer", help="folder of a recognizer: words are timed, too")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "processes"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak:
        print(peak_memory(options.peak))
        return
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in options.parts:
            print(speed(Path(folder), options))
        if "memory" in options.parts:
            print(memory(Path(folder)))
        if "processes" in options.parts:
            print(processes(Path(folder)))


def make(folder, seconds):
    path = folder / f"{seconds}.mp4"
    if not path.exists():
        write(path, num_frames=25 * seconds, size=(320, 240), sound=voice(float(seconds)))
    return path


def speed(folder, options):
    """The best of some repeats, in CPU seconds of one thread per second of clip."""
    path, parts = make(folder, 10), dict(PARTS)
    if options.speech_recognizer:
        parts["words, voice and face"] = ("text", "audio", "vision")
    reader = ClipReader(DEFAULT_FRONT_ENDS, speech_recognizer=options.speech_recognizer, language="en")
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(options.repeats + 1):  # the first loads the networks
        for name, wanted in parts.items():
            begin = time.process_time()
            if wanted:
                reader.read(path, wanted=wanted)
            else:
                with Clip(path) as clip:
                    for _ in clip.pieces(frame_rate=10):
                        pass
            best[name] = min(best[name], time.process_time() - begin)
    rows = [[name, seconds / 10] for name, seconds in best.items()]
    return markdown_table(["10 s of 320x240 mp4", "CPU seconds per second of clip"], rows)


def memory(folder):
    """Peak resident memory of a process that reads voice and face of one clip."""
    rows = []
    for seconds in (10, 600):
        command = [sys.executable, __file__, "--peak", str(make(folder, seconds))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        rows.append([f"{seconds} s", float(done.stdout.split()[-1])])
    rows.append(["ratio", rows[1][1] / rows[0][1]])
    return "\n" + markdown_table(["clip", "peak memory, MiB"], rows)


def peak_memory(path):
    ClipReader(DEFAULT_FRONT_ENDS).read(path, wanted=("audio", "vision"))
    # getrusage would count what the parent had before this process was its own
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def processes(folder, num_clips=16):
    """Seconds of clip a second, over two processes against one, after they have started."""
    path = make(folder, 10)
    row = ClipRow("clip", str(path), "0", text="")
    # the same clip from other seconds on, so that no cache answers
    rows = [replace(row, id=str(number), start=number / 1000) for number in range(num_clips)]
    seconds = {}
    for count in (1, 2):
        cache = folder / f"cache{count}"
        cache.mkdir()
        extraction = Extraction(DEFAULT_FRONT_ENDS, ("audio", "vision"), str(cache))
        with multiprocessing.get_context("spawn").Pool(count, begin_alone, (extraction,)) as pool:
            # a process that is there takes one and sleeps: none is left out
            pool.map(time.sleep, [2.0] * count, chunksize=1)
            pool.map(make_features, rows[:count], chunksize=1)
            begin = time.perf_counter()
            for _ in pool.imap_unordered(make_features, rows[count:]):
                pass
            seconds[count] = (time.perf_counter() - begin) / (num_clips - count)
    table = [[count, 10 / taken, seconds[1] / taken] for count, taken in seconds.items()]
    return "\n" + markdown_table(["processes", "seconds of clip per second", "against one"], table)


if __name__ == "__main__":
    main()
