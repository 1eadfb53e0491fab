"""From any clip to pieces of sound and upright frames on one timeline, in one pass and little memory.

A clip is a path, bytes, a binary file object, or sound and frames as arrays. Time is the clip's own: 0 is where its
first stream begins, so sound that starts late stays late. Frames are taken from a regular grid by the time at which
they are shown, never by their number: phones record at a varying rate, and the rate that a header states is then none.

What is broken is refused, with the place: a decoder by itself fills holes with grey, and a file that was cut merely
ends early.
"""

import io
import logging
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

try:
    import av
    from av.codec.context import ThreadType
    from av.stream import Disposition
except ImportError:  # only clips need it
    av = None

logger = logging.getLogger(__name__)

# what FFmpeg may take a clip for: no picture, no text, and above all no playlist, which would name further files
FORMATS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpegts,mpeg,mpegvideo,asf,flv,wav,w64,mp3,flac,ogg,aac,aiff,caf,au,amr"
)
# their duration is stated, not guessed from the bit rate of the beginning
STATED_DURATION = {"matroska", "mov", "avi", "wav", "w64", "flac", "ogg", "caf", "aiff"}
SEEKABLE = {"matroska", "mov", "wav", "flac"}  # to a time, not to a guess at it
LEAD = 1.0  # seconds that are decoded before those that are wanted
LONGEST_SIDE = 1280  # of a frame: a larger one is made smaller, the face in it has pixels enough
GAP = 0.1  # seconds of missing sound that become silence; less is the jitter of timestamps
LONGEST_GAP = 600.0
PIECE = 1.0  # seconds of sound in a piece, at most
FULL_SCALE = {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


@dataclass(frozen=True)
class Sound:
    """A piece of the voice: mono samples (float32 [n], full scale 1) and when it begins, in seconds."""

    start: float
    samples: np.ndarray
    sampling_rate: int


@dataclass(frozen=True)
class Frame:
    """An upright picture (uint8 [height, width, 3], RGB) that is shown at `count` places of the grid from `index`."""

    index: int
    count: int
    image: np.ndarray


class Clip:
    """
    An opened clip.

    >>> with Clip("clip.mp4") as clip:
    ...     for piece in clip.pieces(frame_rate=10):
    ...         ...  # Sound or Frame, as they come

    Args:
        source (`str`, `PathLike`, `bytes` or binary file object): mp4, mov, mkv, webm, avi, wav, mp3, flac, m4a, ogg,
            opus and whatever else of `FORMATS` FFmpeg decodes, by content and not by name.

    Attributes:
        name (`str`): what errors call it.
        has_audio, has_video (`bool`): a cover picture is no video.
        seconds (`float`): how much of it has been read; the whole length once `pieces` has ended.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no clip, or it is damaged.
        ImportError: PyAV is not installed.
    """

    def __init__(self, source):
        if av is None:
            raise ImportError("a clip is decoded by PyAV, which is not installed: pip install 'av>=18,<20'")
        self.name, self._file, self._is_ours = _opened(source)
        try:
            options = {"format_whitelist": FORMATS}
            if _is_whole_wav(self._file, self.name):
                options["probesize"] = "65536"  # FFmpeg would look through 5 MB for other codecs
            # given as an object, it cannot refer to other files, and its name's ending says nothing
            self._container = av.open(_Nameless(self._file), metadata_errors="replace", options=options)
        except (av.FFmpegError, ValueError) as error:
            self.close()
            if not isinstance(error, av.FFmpegError):
                raise
            raise ValueError(
                f"{self.name} is no clip that can be read, or it was cut: expected video or sound "
                f"(mp4, mkv, webm, mov, avi, wav, mp3, flac, m4a, ogg, opus), but FFmpeg says: {error.strerror}"
            ) from None
        videos = [
            stream for stream in self._container.streams.video if not stream.disposition & Disposition.attached_pic
        ]
        self._video = self._container.streams.best("video") if videos else None
        if self._video not in videos:
            self._video = videos[0] if videos else None
        self._audio = self._container.streams.best("audio")
        if self._video is None and self._audio is None:
            self.close()
            raise ValueError(f"{self.name} has neither video nor sound")
        self.seconds = 0.0

    @property
    def has_audio(self):
        return self._audio is not None

    @property
    def has_video(self):
        return self._video is not None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close the file, where it was opened here."""
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()
        if self._is_ours:
            self._file.close()

    def pieces(self, audio=True, frame_rate=None, start=0.0, end=None) -> Iterator[Sound | Frame]:
        """
        Decode, once.

        Args:
            audio (`bool`): whether sound is wanted.
            frame_rate (`float`, *optional*): places of the grid in a second, at 0, 1 / frame_rate, ...; None: no
                frames. At each place stands the frame that is shown then. Time 0 of the grid is `start`.
            start, end (`float`, *optional*): which seconds of the clip; None: to its end.

        Yields:
            [`Sound`] without gaps but for its beginning, and [`Frame`]s, each in order.

        Raises:
            ValueError: naming the second at which it is damaged or cut.
        """
        if end is not None and end <= start:
            raise ValueError(f"end is {end} s and start {start} s of {self.name}; expected a later end")
        streams = [stream for stream in (self._video, self._audio) if stream is not None]
        wanted = {"audio": audio, "video": frame_rate is not None}
        for stream in streams:
            # as many threads as files are read at once is for the caller to say, by processes
            stream.codec_context.thread_type, stream.codec_context.thread_count = ThreadType.NONE, 1
        begin = (self._container.start_time or 0) / 1e6
        has_sought = False
        if start > 2 * LEAD and SEEKABLE & set(self._container.format.name.split(",")):
            # before it, so that decoders have settled when it comes
            self._container.seek(round((start - LEAD + begin) * 1e6))
            has_sought = True
        span = _Span(start, end)
        decoders = {}
        if audio and self._audio is not None:
            decoders["audio"] = _SoundDecoder(self.name, span)
        if frame_rate is not None and self._video is not None:
            decoders["video"] = _FrameDecoder(self.name, frame_rate, span)
        ends = dict.fromkeys(("audio", "video"), 0.0)
        finished = False
        for stream, frames, packet_end in self._demuxed(streams, wanted, begin):
            if packet_end is not None and packet_end > ends[stream.type]:
                ends[stream.type] = packet_end
            for frame in frames:
                yield from decoders[stream.type].decoded(frame, None if frame.time is None else frame.time - begin)
            if end is not None and all(decoder.is_beyond for decoder in decoders.values()):
                finished = True
                break
        for kind, decoder in decoders.items():
            yield from decoder.rest()
            ends[kind] = decoder.end
        self.seconds = max(ends.values())
        if start and start >= self.seconds:
            raise ValueError(f"start is {start} s, but {self.name} has {self.seconds:.2f} s")
        if not finished and not has_sought:
            self._require_whole(ends, decoders)

    def _demuxed(self, streams, wanted, begin):
        """(stream, decoded frames, end of the packet in seconds) for each packet; of unwanted streams no frames."""
        at = 0.0
        # as floats: a fraction of each of many small packets takes longer than decoding it
        units = {stream.index: float(stream.time_base) for stream in streams}
        try:
            for packet in self._container.demux(streams):
                stream, time, unit = packet.stream, None, units[packet.stream.index]
                if packet.pts is not None:
                    time = packet.pts * unit - begin
                    at = time if time > at else at
                    time += (packet.duration or 0) * unit
                if not wanted[stream.type]:
                    yield stream, (), time
                    continue
                if packet.is_corrupt:
                    raise _damaged(self.name, at)
                try:
                    frames = stream.codec_context.decode(packet) if packet.size or packet.dts is None else []
                except av.FFmpegError as error:
                    # the beginning of a cut-out mp3 leans on what came before it
                    if stream.type == "audio" and at < GAP and isinstance(error, av.error.InvalidDataError):
                        continue
                    raise _damaged(self.name, at, error) from None
                if stream.type == "video" and any(frame.is_corrupt for frame in frames):
                    raise _damaged(self.name, at)
                yield stream, frames, time
        except av.FFmpegError as error:
            raise _damaged(self.name, at, error) from None

    def _require_whole(self, ends, decoders):
        if not STATED_DURATION & set(self._container.format.name.split(",")):
            return
        stated = {}
        for stream in (self._video, self._audio):
            if stream is not None and stream.duration is not None and stream.type in decoders:
                stated[stream.type] = float(stream.duration * stream.time_base)
        checks = [(stated[kind], ends[kind] - decoders[kind].begin, kind) for kind in stated]
        if self._container.duration:
            checks.append((self._container.duration / 1e6, max(ends.values()), "file"))
        for expected, came, what in checks:
            if came < expected - min(0.5, max(0.1, expected / 4)):
                raise ValueError(
                    f"{self.name} was cut, or is damaged from there on: its {what} states {expected:.2f} s and ends "
                    f"after {came:.2f} s"
                )


@dataclass(frozen=True)
class _Span:
    """The seconds that are wanted."""

    start: float
    end: float | None


class _SoundDecoder:
    """Decoded audio frames to mono pieces without gaps."""

    def __init__(self, name, span):
        self.name, self.span = name, span
        self.rate, self.begin, self.end = None, 0.0, 0.0
        self.is_beyond = False
        self._waiting, self._num_waiting, self._num_samples = [], 0, 0

    def decoded(self, frame, time):
        if self.rate is None:
            self.rate = frame.sample_rate
            self.begin = self.end = max(time or 0.0, 0.0)
            self._sent = self.begin
        if frame.sample_rate != self.rate:
            raise ValueError(
                f"{self.name} changes its sampling rate at {self.end:.2f} s, from {self.rate} to "
                f"{frame.sample_rate} Hz; expected one rate"
            )
        samples = mono(frame.to_ndarray(), frame.layout.nb_channels, frame.format.is_planar)
        gap = 0.0 if time is None else time - self.end
        if gap > LONGEST_GAP:
            raise ValueError(f"{self.name} has no sound from {self.end:.2f} s to {time:.2f} s; its times are damaged")
        if gap > GAP:
            missing = round(gap * self.rate)
            while missing > 0:
                step = min(missing, self.rate)
                yield from self._add(np.zeros(step, np.float32))
                missing -= step
        yield from self._add(samples)

    def _add(self, samples):
        self._waiting.append(samples)
        self._num_waiting += len(samples)
        self._num_samples += len(samples)
        self.end = self.begin + self._num_samples / self.rate
        if self._num_waiting >= PIECE * self.rate:
            yield from self.rest()

    def rest(self):
        if not self._waiting:
            return
        samples, start = np.concatenate(self._waiting), self._sent
        finite = np.isfinite(samples)
        if not finite.all():
            at = start + finite.argmin() / self.rate
            raise ValueError(f"{self.name} holds NaN or infinite samples at {at:.2f} s")
        self._sent = self.end
        self._waiting, self._num_waiting = [], 0
        first = max(0, round((self.span.start - start) * self.rate))
        last = len(samples)
        if self.span.end is not None:
            last = min(last, round((self.span.end - start) * self.rate))
            self.is_beyond = self.end >= self.span.end
        if first < last:
            yield Sound(max(0.0, start - self.span.start), samples[first:last], self.rate)


class _FrameDecoder:
    """Decoded video frames to those that a grid shows."""

    def __init__(self, name, rate, span):
        self.name, self.rate, self.span = name, rate, span
        self.begin, self.end = None, 0.0
        self.is_beyond = False
        self._shown = self._time = self._next = None
        self._step = 0.0

    def decoded(self, frame, time):
        if time is None:
            time = self.end
        if self._shown is None:
            self.begin = max(time, 0.0)
            # the first stands at the place before it, too: else a single frame could fall between two
            self._next = int(max(0.0, time - self.span.start) * self.rate + 1e-6)
        else:
            if time <= self._time:
                return
            if time - self._time > LONGEST_GAP:
                raise ValueError(
                    f"{self.name} has no frame from {self._time:.2f} s to {time:.2f} s; its times are damaged"
                )
            yield from self._until(time)
            self._step = time - self._time
        self._shown, self._time = frame, time
        duration = float(frame.duration * frame.time_base) if frame.duration else self._step
        self.end = time + max(duration, self._step if not frame.duration else 0.0)
        self.is_beyond = self.span.end is not None and time >= self.span.end

    def rest(self):
        if self._shown is not None:
            end = max(self.end, self._time + 1e-3)
            yield from self._until(end)
            if self._next == 0 and self.span.start <= self._time:
                self._next = 0
            self.end = end

    def _until(self, time):
        """The frame that was shown until `time`, if a place of the grid saw it."""
        if self.span.end is not None:
            time = min(time, self.span.end)
        # places before `time`; one exactly at `time` belongs to the next frame
        places = int(np.ceil((time - self.span.start) * self.rate - 1e-4))
        if places > self._next:
            yield Frame(self._next, places - self._next, upright(self._shown))
            self._next = places


def upright(frame):
    """A decoded video frame (`av.VideoFrame`) as uint8 [height, width, 3], turned as its file says it is to be shown.

    One whose longer side is above `LONGEST_SIDE` is made smaller.
    """
    scale = Fraction(LONGEST_SIDE, max(frame.width, frame.height))
    size = {}
    if scale < 1:
        size = {"width": max(1, int(frame.width * scale)), "height": max(1, int(frame.height * scale))}
        size["interpolation"] = "AREA"
    image = frame.to_ndarray(format="rgb24", **size)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def mono(samples, num_channels=1, is_planar=True):
    """
    The mean over channels. (FFmpeg's own downmix makes a voice that was copied to six channels 3.4 times louder.)

    Args:
        samples (`np.ndarray`): [channels, n], or interleaved where not planar; integers count by their full scale.
        num_channels (`int`), is_planar (`bool`).

    Returns:
        `np.ndarray` float32 [n], full scale 1.
    """
    channels = samples if is_planar else samples.reshape(-1, num_channels).T
    kind = channels.dtype.str[1:]
    if kind in FULL_SCALE:
        offset = 128 if kind == "u1" else 0
        channels = (channels.astype(np.float64) - offset) / FULL_SCALE[kind]
    if len(channels) == 1:
        return channels[0].astype(np.float32, copy=False)
    return channels.astype(np.float64).mean(axis=0).astype(np.float32)


def pieces_of_arrays(waveform=None, sampling_rate=None, frames=None, frame_rate=None, grid_rate=None):
    """
    Sound and frames that are in memory already, as [`Clip.pieces`] yields them.

    Args:
        waveform (array [n], [channels, n] or [n, channels], *optional*): floats of full scale 1, or integers.
        sampling_rate (`int`): of it, Hz.
        frames (uint8 array [time, height, width, 3], *optional*): RGB.
        frame_rate (`float`): of them, a second.
        grid_rate (`float`, *optional*): places of the grid in a second; None: no frames.

    Raises:
        ValueError: naming the field, what came and what is expected.
    """
    if waveform is not None:
        if not isinstance(sampling_rate, int | np.integer) or sampling_rate < 1:
            raise ValueError(f"sampling_rate is {sampling_rate!r}; expected Hz of the waveform, a whole number")
        yield from _pieces_of_waveform(_as_mono(waveform), int(sampling_rate))
    if frames is not None:
        if isinstance(frame_rate, bool) or not isinstance(frame_rate, int | float | np.number) or not frame_rate > 0:
            raise ValueError(f"frame_rate is {frame_rate!r}; expected the frames in a second, a number above 0")
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:3]:
            raise ValueError(
                f"frames must be uint8 [time, height, width, 3], but are {frames.dtype} {list(frames.shape)}"
            )
        if grid_rate is not None:
            yield from _pieces_of_frames(frames, float(frame_rate), grid_rate)


def _as_mono(waveform):
    try:
        waveform = np.asarray(waveform)
        if waveform.dtype.kind not in "fiu" or (
            waveform.dtype.kind != "f" and waveform.dtype.str[1:] not in FULL_SCALE
        ):
            raise TypeError(f"it holds {waveform.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"waveform must hold floats of full scale 1, or 16 or 32 bit integers, but does not: {error}"
        ) from None
    if waveform.ndim not in (1, 2):
        raise ValueError(f"waveform must be [n] or [channels, n], but has the shape {list(waveform.shape)}")
    channels = waveform[None] if waveform.ndim == 1 else waveform
    # a clip has fewer channels than samples
    samples = mono(channels.T if len(channels) > channels.shape[1] and channels.shape[1] else channels)
    if not np.isfinite(samples).all():
        raise ValueError("waveform holds NaN or infinite samples")
    return samples


def _pieces_of_waveform(samples, rate):
    for start in range(0, len(samples), rate):
        yield Sound(start / rate, samples[start : start + rate], rate)


def _pieces_of_frames(frames, frame_rate, grid_rate):
    place = 0
    for number, frame in enumerate(frames):
        places = int(np.ceil((number + 1) / frame_rate * grid_rate - 1e-4))
        if places > place:
            yield Frame(place, places - place, np.ascontiguousarray(frame))
            place = places


def _opened(source):
    """Name, seekable binary file and whether it is ours to close."""
    if isinstance(source, str | os.PathLike):
        try:
            return os.path.basename(os.fspath(source)) or str(source), open(source, "rb"), True
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no clip {str(source)!r} (a path is expected, no words)") from None
    if isinstance(source, bytes | bytearray | memoryview):
        return "the clip", io.BytesIO(source), True
    if not hasattr(source, "read"):
        raise ValueError(f"a clip must be a path, bytes or a binary file object, but is {type(source).__name__}")
    if not isinstance(source.read(0), bytes):
        raise ValueError("a clip's file object must be opened as binary: open(path, 'rb')")
    name = getattr(source, "name", None)
    name = os.path.basename(name) if isinstance(name, str) else "the clip"
    if hasattr(source, "seekable") and source.seekable():
        return name, source, False
    stored = tempfile.TemporaryFile()  # noqa: SIM115
    while chunk := source.read(1 << 20):
        stored.write(chunk)
    stored.seek(0)
    return name, stored, True


class _Nameless:
    """A file object without its name, by whose ending FFmpeg would guess."""

    def __init__(self, file):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _is_whole_wav(file, name):
    """Whether it is a wav. ValueError for one whose data chunk is longer than its file: FFmpeg says nothing then."""
    start = file.tell()
    try:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        size = file.seek(0, os.SEEK_END) - start
        at = 12
        while at + 8 <= size:
            file.seek(start + at)
            kind, length = struct.unpack("<4sI", file.read(8))
            if kind == b"data":
                # 0 and -1 are what a recorder writes that did not know the length yet
                if length not in (0, 0xFFFFFFFF) and at + 8 + length > size:
                    raise ValueError(
                        f"{name} was cut: its header states {length} bytes of sound, but {size - at - 8} are there"
                    )
                break
            at += 8 + length + length % 2
        return True
    finally:
        file.seek(start)


def _damaged(name, at, error=None):
    reason = f": {error.strerror}" if error is not None else ""
    return ValueError(f"{name} is damaged at {at:.2f} s{reason}")
