"""Clips as people have them, made on the spot, small: every container and codec, rotated, at a varying rate, cut,
damaged, mislabelled.

The face is that of astronaut Eileen Collins (NASA, public domain); the voice is five tones that come and go.
"""

import os
import struct
import wave
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATE = 16000
WIDTH, HEIGHT = 160, 120


@lru_cache(maxsize=1)
def face():
    """uint8 [160, 160, 3]"""
    return np.asarray(Image.open(Path(__file__).with_name("astronaut.jpg")).convert("RGB"))


def voice(seconds=1.2, rate=RATE):
    """float32 [n]: harmonics of 120 to 180 Hz in syllables of a third of a second, silence at the ends."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 150 + 30 * np.sin(2 * np.pi * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 6))
    envelope = np.clip(np.sin(2 * np.pi * 3 * time), 0, None) * (time > 0.1) * (time < seconds - 0.1)
    return (0.2 * tones * envelope).astype(np.float32)


def samples_of(path):
    """float64 [n] of a 16-bit mono wav, as Python's own module reads it."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def pictures(count, kind="face", width=WIDTH, height=HEIGHT):
    """Frames uint8 [height, width, 3] of a moving face ("face"), two ("two"), none ("none")."""
    for number in range(count):
        frame = np.empty((height, width, 3), np.uint8)
        frame[:] = np.linspace(40, 160, width, dtype=np.uint8)[None, :, None]
        if kind in ("face", "two"):
            size = int(0.72 * height)
            left, top = int(0.15 * width + 6 * np.sin(number / 6)), int(0.12 * height + 3 * np.cos(number / 5))
            frame[top : top + size, left : left + size] = resized(size)
            if kind == "two":
                small = int(0.4 * height)
                frame[-small:, -small:] = resized(small)[:, ::-1]
        else:
            frame += np.uint8(number % 20)
        yield frame


@lru_cache(maxsize=8)
def resized(size):
    return np.asarray(Image.fromarray(face()).resize((size, size), Image.BILINEAR))


def write(
    path,
    video="libx264",
    audio="aac",
    frame_rate=25,
    num_frames=30,
    kind="face",
    size=(WIDTH, HEIGHT),
    sound=None,
    rate=RATE,
    layout="mono",
    pixels="yuv420p",
    times=None,
    delay=0.0,
    options=None,
):
    """Write a clip; `times` (milliseconds) makes the frames' rate vary, `delay` (seconds) delays the sound."""
    sound = voice() if sound is None else sound
    with own_scheduling(), av.open(str(path), "w") as clip:
        streams = []
        if video:
            default = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast", "log-level": "none"}}
            stream = clip.add_stream(video, rate=frame_rate, options=options or default.get(video, {}))
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            if times is not None:
                stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            streams.append((stream, _video_frames(num_frames, kind, size, times)))
        if audio:
            stream = clip.add_stream(audio, rate=rate)
            stream.layout = layout
            streams.append((stream, _audio_frames(stream, sound, layout, delay)))
        for stream, frames in streams:
            for frame in frames:
                clip.mux(stream.encode(frame))
            clip.mux(stream.encode(None))
    return Path(path)


@contextmanager
def own_scheduling():
    """This thread's priority stays what it was: SVT-AV1, where it may, makes whoever encodes by it a real-time thread
    of the highest priority (findings/svt_av1_real_time.sh). What such a thread starts inherits that, and waits by
    spinning for threads that then never get a core."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _video_frames(count, kind, size, times):
    for number, picture in enumerate(pictures(count, kind, *size)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = int(times[number]), Fraction(1, 1000)
        yield frame


def _audio_frames(stream, sound, layout, delay):
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    sound = np.atleast_2d(sound)
    if len(sound) != channels:
        sound = np.repeat(sound[:1], channels, axis=0)
    resampler = av.AudioResampler(format=stream.codec_context.format or "fltp", layout=layout, rate=stream.rate)
    for start in range(0, sound.shape[1], RATE // 10):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound[:, start : start + RATE // 10]), format="fltp", layout=layout
        )
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = start + round(delay * RATE)
        yield from resampler.resample(frame)
    yield from resampler.resample(None)


def rotate(content, degrees):
    """An mp4 whose video is to be shown turned clockwise: its matrix (tkhd) is written anew."""
    content, place, one = bytearray(content), 0, 0x10000
    turned = {90: (0, one, 0, -one, 0, 0), 180: (-one, 0, 0, 0, -one, 0), 270: (0, -one, 0, one, 0, 0)}[degrees]
    while (place := content.find(b"tkhd", place)) >= 0:
        matrix = place + 8 + (36 if content[place + 4] == 0 else 48)
        if struct.unpack(">I", content[matrix + 36 : matrix + 40])[0]:
            content[matrix : matrix + 36] = struct.pack(">9i", *turned, 0, 0, 0x40000000)
        place += 4
    return bytes(content)
