"""From frames to face features: what a processor's config names under "vision", computed frame by frame.

Two small networks of MediaPipe (Apache-2.0, see face_landmarks.NOTICE) in plain torch: BlazeFace finds faces, the face
mesh places 468 points on each. A face that is being followed needs no finding: its own points say where to look next.
"""

import logging
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from .audio_features import FeatureSequence

logger = logging.getLogger(__name__)

WEIGHTS_FILE, NOTICE_FILE = "face_landmarks.safetensors", "face_landmarks.NOTICE"
DETECTOR_SIZE, MESH_SIZE = 128, 192
MIN_DETECTION, MIN_OVERLAP = 0.6, 0.3
MIN_PRESENCE = 0.5  # of a face in the mesh's crop: below, what the detector found was none (a cat, a galaxy)
MAX_FACES = 3  # that are followed at once
LOOK_AGAIN = 1.0  # seconds after which new faces are looked for while others are being followed
SAME_FACE = 0.3  # overlap of boxes above which two are one face

# points of the mesh, by MediaPipe's numbers; left and right are the picture's
EYE_OUTER, EYE_INNER = (33, 263), (133, 362)
EYE_TOP, EYE_BOTTOM = (159, 386), (145, 374)
BROW_INNER, BROW_MIDDLE, BROW_OUTER = (107, 336), (105, 334), (70, 300)
LIP_CORNER, LIP_UPPER, LIP_LOWER, LIP_UPPER_INNER, LIP_LOWER_INNER = (61, 291), 0, 17, 13, 14
NOSE_TIP, NOSE_BRIDGE, NOSE_BASE, NOSE_WING = 1, 168, 2, (64, 294)
CHIN, FOREHEAD, CHEEK = 152, 10, (50, 280)

SHAPE_NAMES = (
    "eye_open_left",
    "eye_open_right",
    "brow_inner_left",
    "brow_inner_right",
    "brow_middle_left",
    "brow_middle_right",
    "brow_outer_left",
    "brow_outer_right",
    "brow_distance",
    "mouth_open",
    "mouth_width",
    "mouth_corner_left",
    "mouth_corner_right",
    "upper_lip_to_nose",
    "upper_lip_thickness",
    "lower_lip_thickness",
    "lip_protrusion",
    "lower_lip_to_chin",
    "jaw_drop",
    "nose_width",
    "cheek_raise",
)
POSE_NAMES = ("yaw", "pitch", "roll")


# -- the networks -----------------------------------------------------------------------------------------------------


class _Convolution(nn.Conv2d):
    """As TensorFlow pads: of an even side and stride 2, more at the end."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2 * (stride == 1), groups=groups)
        missing = kernel - 2 if stride == 2 else 0
        self.edges = (missing // 2, missing - missing // 2) * 2

    def forward(self, x):
        return super().forward(F.pad(x, self.edges) if any(self.edges) else x)


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution, as the product of two matrices: channels come last."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 1)

    def forward(self, x):
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A depthwise 3x3 and a pointwise convolution beside a shortcut, whose missing channels are zero."""

    def __init__(self, inputs, outputs, stride=1, activation=nn.PReLU):
        super().__init__()
        self.depthwise = _Convolution(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = _Pointwise(inputs, outputs)
        self.activation = activation(outputs) if activation is nn.PReLU else activation()
        self.stride = stride

    def forward(self, x):
        y = self.pointwise(self.depthwise(x))
        if self.stride == 2:
            rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
            x = torch.maximum(rows[:, :, :, ::2], rows[:, :, :, 1::2])
        if y.shape[1] == x.shape[1]:
            return self.activation(y + x)
        y[:, : x.shape[1]] += x
        return self.activation(y)


class FaceDetector(nn.Module):
    """BlazeFace, short range: RGB in [-1, 1] [1, 3, 128, 128] -> scores [896] (logits) and boxes [896, 16]."""

    def __init__(self):
        super().__init__()

        def block(*sizes):
            return _Block(*sizes, activation=nn.ReLU)

        self.stem = nn.Sequential(_Convolution(3, 24, 5, 2), nn.ReLU())
        fine = [(24, 24), (24, 28), (28, 32, 2), (32, 36), (36, 42), (42, 48, 2), (48, 56), (56, 64), (64, 72)]
        fine += [(72, 80), (80, 88)]
        self.fine = nn.Sequential(*(block(*sizes) for sizes in fine))
        self.coarse = nn.Sequential(block(88, 96, 2), *(block(96, 96) for _ in range(4)))
        self.fine_scores, self.coarse_scores = _Pointwise(88, 2), _Pointwise(96, 6)
        self.fine_boxes, self.coarse_boxes = _Pointwise(88, 32), _Pointwise(96, 96)

    def forward(self, image):
        fine = self.fine(self.stem(image))
        coarse = self.coarse(fine)
        places = ((self.fine_scores, self.fine_boxes, fine), (self.coarse_scores, self.coarse_boxes, coarse))
        scores = [score(features).permute(0, 2, 3, 1).reshape(-1) for score, _, features in places]
        boxes = [box(features).permute(0, 2, 3, 1).reshape(-1, 16) for _, box, features in places]
        return torch.cat(scores), torch.cat(boxes)


class FaceMesh(nn.Module):
    """RGB in [0, 1] [1, 3, 192, 192] -> points [468, 3] in pixels of the crop, and the presence of a face (logit)."""

    def __init__(self):
        super().__init__()

        def blocks(*sizes):
            return [_Block(*size) for size in sizes]

        trunk = [(16, 16), (16, 16), (16, 32, 2), (32, 32), (32, 32), (32, 64, 2), (64, 64), (64, 64), (64, 128, 2)]
        trunk += [(128, 128), (128, 128), (128, 128, 2), (128, 128), (128, 128)]
        self.stem = nn.Sequential(_Convolution(3, 16, 3, 2), nn.PReLU(16))
        self.trunk = nn.Sequential(*blocks(*trunk))
        wide = (128, 128)
        self.points = nn.Sequential(
            *blocks((128, 128, 2), wide, wide), _Pointwise(128, 32), nn.PReLU(32), *blocks((32, 32))
        )
        self.presence = nn.Sequential(*blocks((128, 128, 2)), _Pointwise(128, 32), nn.PReLU(32), *blocks((32, 32)))
        self.points_out, self.presence_out = nn.Conv2d(32, 1404, 3), nn.Conv2d(32, 1, 3)

    def forward(self, crop):
        features = self.trunk(self.stem(crop))
        return self.points_out(self.points(features)).view(468, 3), self.presence_out(self.presence(features)).view(())


class FaceNetworks(nn.Module):
    """Detector and mesh; stateless, so any number of clips may go through at once."""

    def __init__(self):
        super().__init__()
        self.detector, self.mesh = FaceDetector(), FaceMesh()

    @classmethod
    def from_file(cls, path):
        """The networks with the weights in `path`, a safetensors file as training/convert_face.py writes it."""
        with torch.device("meta"):
            networks = cls()
        weights = {name: value.float() for name, value in load_file(path).items()}
        for name, value in weights.items():
            if value.ndim == 4:
                weights[name] = value.contiguous(memory_format=torch.channels_last)
        try:
            networks.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(f"the weights in {path} are not those of the face networks: {error}") from None
        return networks.eval().requires_grad_(False)

    @torch.inference_mode()
    def find(self, image):
        """
        Faces in uint8 [height, width, 3], surest first.

        Returns:
            `np.ndarray` float32 [faces, 8, 2] in pixels: centre of the box, its width and height, and six points, of
            which the first two are the eyes (left and right of the picture).
        """
        height, width = image.shape[:2]
        scale = DETECTOR_SIZE / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = F.interpolate(_as_batch(image), size=size, mode="bilinear", antialias=True, align_corners=False)
        left, top = (DETECTOR_SIZE - size[1]) // 2, (DETECTOR_SIZE - size[0]) // 2
        edges = (left, DETECTOR_SIZE - size[1] - left, top, DETECTOR_SIZE - size[0] - top)
        square = F.pad(small, edges) / 127.5 - 1
        logits, boxes = self.detector(square.contiguous(memory_format=torch.channels_last))
        scores = logits.sigmoid().numpy()
        likely = np.flatnonzero(scores > MIN_DETECTION)
        boxes = boxes.numpy()[likely].reshape(-1, 8, 2)
        anchors = _anchors()[likely][:, None]
        boxes[:, :1] += anchors
        boxes[:, 2:] += anchors
        faces = _weighted_suppression(boxes, scores[likely])
        if len(faces):
            faces[:, [0, *range(2, 8)]] -= (left, top)
            faces /= (size[1] / width, size[0] / height)
        return faces

    @torch.inference_mode()
    def place(self, image, region):
        """
        Points of the face in a square region (centre x, y, side, angle) of uint8 [height, width, 3].

        Returns:
            points (`np.ndarray` float64 [468, 3]) in pixels of the image, depth in the same unit; presence (`float`).
        """
        crop, to_image = _crop(image, region, MESH_SIZE)
        points, presence = self.mesh((crop / 255).contiguous(memory_format=torch.channels_last))
        points = points.double().numpy()
        flat = points[:, :2] @ to_image[:, :2].T + to_image[:, 2]
        return np.column_stack([flat, points[:, 2] * region[2] / MESH_SIZE]), float(presence.sigmoid())


def _as_batch(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


@lru_cache(maxsize=1)
def _anchors():
    """Pixel [896, 2] of each of the detector's boxes: two on a grid of 16 x 16, then six on one of 8 x 8."""
    grids = []
    for side, count in ((16, 2), (8, 6)):
        y, x = np.divmod(np.arange(side * side), side)
        grids.append(np.repeat((np.stack([x, y], axis=1) + 0.5) / side, count, axis=0))
    return np.concatenate(grids).astype(np.float32) * DETECTOR_SIZE


def _weighted_suppression(boxes, scores):
    """One box of each bundle that overlaps: the mean, weighted by the scores."""
    order, kept = list(np.argsort(-scores)), []
    while order:
        overlaps = np.array([_overlap(boxes[order[0]], boxes[other]) for other in order])
        bundle = [other for other, overlap in zip(order, overlaps, strict=True) if overlap > MIN_OVERLAP]
        bundle = bundle or order[:1]
        kept.append(np.average(boxes[bundle], axis=0, weights=scores[bundle]))
        order = [other for other in order if other not in bundle]
    return np.array(kept, dtype=np.float32).reshape(-1, 8, 2)


def _overlap(one, other):
    """Intersection over union of two boxes, each (centre, size, ...)."""
    low = np.maximum(one[0] - one[1] / 2, other[0] - other[1] / 2)
    high = np.minimum(one[0] + one[1] / 2, other[0] + other[1] / 2)
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / max(np.prod(one[1]) + np.prod(other[1]) - shared, 1e-9)


@lru_cache(maxsize=4)
def _pixel_centres(size):
    line = torch.arange(size, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1)


def _crop(image, region, size):
    """The region as float [1, 3, size, size], and the matrix [2, 3] from its pixels to those of the image."""
    x, y, side, angle = region
    scale = side / size
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    to_image = np.column_stack([turn, np.array([x, y]) - turn @ np.full(2, size / 2)])
    # only what the region can touch is converted
    reach = side * 0.71 + 2 * max(1.0, scale)
    left, top = (int(max(0, math.floor(place - reach))) for place in (x, y))
    right, bottom = (
        int(min(whole, math.ceil(place + reach))) for place, whole in ((x, image.shape[1]), (y, image.shape[0]))
    )
    if right <= left or bottom <= top:
        return torch.zeros(1, 3, size, size), to_image
    part = _as_batch(image[top:bottom, left:right])
    pooled = min(int(scale), part.shape[2], part.shape[3])
    if pooled > 1:
        # a larger face: means of whole pixels first, or points between would be skipped
        part = F.avg_pool2d(part, pooled, ceil_mode=True, count_include_pad=False)
    else:
        pooled = 1
    matrix = torch.tensor(to_image, dtype=torch.float32)
    places = _pixel_centres(size) @ matrix[:, :2].T + matrix[:, 2] - torch.tensor([left, top])
    extent = torch.tensor([part.shape[3], part.shape[2]], dtype=torch.float32) * pooled
    grid = places / extent * 2 - 1
    return F.grid_sample(part, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False), to_image


def _region_of_box(box):
    """Square region around a detected face, upright by its eyes."""
    eyes = box[3] - box[2]
    return float(box[0, 0]), float(box[0, 1]), float(max(box[1]) * 1.5), math.atan2(eyes[1], eyes[0])


def _region_of_points(points):
    """Square region around a placed face, upright by its eyes."""
    eyes = points[EYE_OUTER[1], :2] - points[EYE_OUTER[0], :2]
    angle = math.atan2(eyes[1], eyes[0])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    flat = points[:, :2] @ turn.T
    low, high = flat.min(axis=0), flat.max(axis=0)
    x, y = (low + high) / 2 @ turn
    return float(x), float(y), float(max(high - low) * 1.5), angle


# -- following faces --------------------------------------------------------------------------------------------------


@dataclass
class FaceTrack:
    """One face over time: places of the grid, the points' measures, presence and share of the picture at each."""

    indices: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    areas: list = field(default_factory=list)
    last: np.ndarray | None = None

    def box(self):
        low, high = self.last[:, :2].min(axis=0), self.last[:, :2].max(axis=0)
        return np.stack([(low + high) / 2, high - low])


class FaceTracker:
    """
    Follows the faces of a clip.

    Args:
        networks ([`FaceNetworks`]).
        frame_rate (`float`): places of the grid in a second.
        measure (callable): what to keep of a frame: (points, presence, image) -> row.
    """

    def __init__(self, networks, frame_rate, measure):
        self.networks, self.measure = networks, measure
        self.frames_between = max(1, round(LOOK_AGAIN * frame_rate))
        self.lost, self.followed = [], []
        self.num_places = self.num_frames = self.with_face = 0
        self._looked_at = -math.inf

    @property
    def tracks(self):
        return self.lost + self.followed

    def add(self, frame):
        """Take the next [`~clip_decoding.Frame`]."""
        image, still = frame.image, []
        for track in self.followed:
            points, presence = self.networks.place(image, _region_of_points(track.last))
            if self._is_face(points, presence, image) and not any(self._same(points, other) for other in still):
                self._keep(track, frame, points, presence)
                still.append(track)
            else:
                self.lost.append(track)
        self.followed = still
        if not still or (frame.index - self._looked_at >= self.frames_between and len(still) < MAX_FACES):
            self._look(frame)
        self.num_places = frame.index + frame.count
        self.num_frames += frame.count
        self.with_face += frame.count * bool(self.followed)

    def _look(self, frame):
        self._looked_at = frame.index
        for box in sorted(self.networks.find(frame.image), key=lambda box: -np.prod(box[1])):
            if len(self.followed) == MAX_FACES:
                break
            if any(_overlap(box, track.box()) > SAME_FACE for track in self.followed):
                continue
            points, presence = self.networks.place(frame.image, _region_of_box(box))
            if not self._is_face(points, presence, frame.image):
                continue
            if any(self._same(points, track) for track in self.followed):
                continue
            track = FaceTrack()
            self._keep(track, frame, points, presence)
            self.followed.append(track)

    def _keep(self, track, frame, points, presence):
        track.last = points
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        area = float(np.prod(high - low)) / (frame.image.shape[0] * frame.image.shape[1])
        row = self.measure(points, presence, frame.image)
        track.indices += range(frame.index, frame.index + frame.count)
        track.rows += [row] * frame.count
        track.areas += [area] * frame.count

    @staticmethod
    def _is_face(points, presence, image):
        eyes = np.linalg.norm(points[EYE_OUTER[0]] - points[EYE_OUTER[1]])
        return presence >= MIN_PRESENCE and math.isfinite(eyes) and eyes > 1.0

    @staticmethod
    def _same(points, track):
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        return _overlap(np.stack([(low + high) / 2, high - low]), track.box()) > SAME_FACE

    def chosen(self, face="largest", loudness=None):
        """
        Which track's row stands at which place: the best, then where it is not, the next best.

        Args:
            face (`"largest"` or `"speaking"`): by share of the picture and duration; or by how its mouth moves with
                the voice, where more than one face is seen.
            loudness (`np.ndarray`, *optional*): of the voice at each place of the grid.

        Returns:
            rows by place (`dict[int, np.ndarray]`), and how many faces there were beside them at once (`int`).
        """
        score = {id(track): sum(track.areas) for track in self.tracks}
        if face == "speaking" and loudness is not None and len(loudness) > 1:
            score = {id(track): _moves_with(track, loudness) for track in self.tracks}
        rows, others = {}, 0
        for track in sorted(self.tracks, key=lambda track: -score[id(track)]):
            free = [place for place, index in enumerate(track.indices) if index not in rows]
            if len(free) == len(track.indices) or not rows:
                rows |= {track.indices[place]: track.rows[place] for place in free}
            else:
                others += 1
        return rows, others


def _moves_with(track, loudness):
    """Correlation of the mouth's opening and its speed with the voice, times the root of the time in view."""
    mouth = np.array([row[SHAPE_NAMES.index("mouth_open")] for row in track.rows], dtype=np.float64)
    places = [place for place, index in enumerate(track.indices) if index < len(loudness)]
    if len(places) < 3:
        return -1.0
    voice = np.log(np.asarray(loudness)[[track.indices[place] for place in places]] + 1e-4)
    movement = np.abs(np.gradient(mouth[places]))
    # a mouth is open somewhat before and after the sound
    total = 0.0
    for values in (mouth[places], np.convolve(movement, np.ones(3) / 3, "same")):
        # a still mouth does not correlate: jitter of the points is about .01
        scale = max(values.std(), 0.01) * max(voice.std(), 1e-3)
        total += float(((values - values.mean()) * (voice - voice.mean())).mean() / scale)
    return total * math.sqrt(len(places))


# -- features ---------------------------------------------------------------------------------------------------------


def face_shape(points):
    """
    What a face does, whatever its size, place and turn: distances in units of that between the outer eye corners.

    Args:
        points (`np.ndarray` float [468, 3]).

    Returns:
        `np.ndarray` float64 [24]: `SHAPE_NAMES`, then `POSE_NAMES` in radians.
    """
    across = points[EYE_OUTER[1]] - points[EYE_OUTER[0]]
    unit = np.linalg.norm(across)
    x = across / unit
    down = points[CHIN] - points[FOREHEAD]
    y = down - (down @ x) * x
    y /= np.linalg.norm(y)
    z = np.cross(x, y)
    # the head's own axes: right, down, away from the camera
    own = (points - points[NOSE_BRIDGE]) @ np.stack([x, y, z], axis=1) / unit

    def distance(one, other):
        return np.linalg.norm(own[one] - own[other])

    lip_height = (own[LIP_UPPER, 1] + own[LIP_LOWER, 1]) / 2
    shape = []
    for side in range(2):
        shape.append(distance(EYE_TOP[side], EYE_BOTTOM[side]) / max(distance(EYE_OUTER[side], EYE_INNER[side]), 1e-6))
    for brow in (BROW_INNER, BROW_MIDDLE, BROW_OUTER):
        # over the corners of the eyes, which no lid moves
        height = [(own[EYE_INNER[side], 1] + own[EYE_OUTER[side], 1]) / 2 for side in range(2)]
        shape += [height[side] - own[brow[side], 1] for side in range(2)]
    shape += [
        distance(*BROW_INNER),
        distance(LIP_UPPER_INNER, LIP_LOWER_INNER),
        distance(*LIP_CORNER),
        lip_height - own[LIP_CORNER[0], 1],
        lip_height - own[LIP_CORNER[1], 1],
        distance(NOSE_BASE, LIP_UPPER),
        distance(LIP_UPPER, LIP_UPPER_INNER),
        distance(LIP_LOWER, LIP_LOWER_INNER),
        -(own[LIP_UPPER, 2] + own[LIP_LOWER, 2]) / 2,
        distance(LIP_LOWER, CHIN),
        distance(NOSE_TIP, CHIN),
        distance(*NOSE_WING),
        np.mean([-own[CHEEK[side], 1] + own[NOSE_TIP, 1] for side in range(2)]),
    ]
    pose = [math.atan2(x[2], x[0]), math.atan2(y[2], math.hypot(y[0], y[1])), math.atan2(x[1], x[0])]
    return np.array([*shape, *pose])


class FaceGeometry:
    """
    What eyes, brows, mouth, jaw and head do, how fast, and how surely a face is there.

    Args:
        networks ([`FaceNetworks`]).
        frame_rate (`float`): steps in a second.
        face (`"largest"` or `"speaking"`): whose, where there are several.
    """

    names = (
        *SHAPE_NAMES,
        *POSE_NAMES,
        *(f"{name}_speed" for name in (*SHAPE_NAMES, *POSE_NAMES)),
        "presence",
    )

    def __init__(self, networks, frame_rate=10.0, face="largest"):
        self.frame_rate, self.face = frame_rate, face
        self.tracker = FaceTracker(networks, frame_rate, self._measure)

    @staticmethod
    def _measure(points, presence, image):
        return np.append(face_shape(points), presence)

    def add(self, frame):
        """Take the next [`~clip_decoding.Frame`]."""
        self.tracker.add(frame)

    def finish(self, loudness=None):
        """
        `FeatureSequence` of all that came, one step at each place of the grid; and what was seen (`dict`).

        Where the face is out of sight its last shape stands still, with presence 0.
        """
        rows, seen = _chosen_rows(self.tracker, self.face, loudness)
        if rows is None:
            return _no_face(self.tracker, 1 / self.frame_rate), seen
        places = np.array(sorted(rows))
        known = np.stack([rows[place] for place in places])
        nearest = np.clip(np.searchsorted(places, np.arange(self.tracker.num_places), side="right") - 1, 0, None)
        values = known[nearest]
        is_there = np.isin(np.arange(len(values)), places)
        values[~is_there, -1] = 0.0
        speed = np.zeros_like(values[:, :-1])
        steady = is_there[1:] & is_there[:-1]
        speed[1:][steady] = np.diff(values[:, :-1], axis=0)[steady] * self.frame_rate
        values = np.concatenate([values[:, :-1], speed, values[:, -1:]], axis=1)
        return FeatureSequence(values.astype(np.float32), step=1 / self.frame_rate), seen


class ImageEncoding:
    """
    What an image encoder makes of the upright crop of the face, at each place of the grid that shows one.

    Args:
        networks ([`FaceNetworks`]), frame_rate, face: as for [`FaceGeometry`].
        encode (callable): uint8 [192, 192, 3] -> float32 [features], see [`load_image_encoder`].
    """

    def __init__(self, networks, encode, frame_rate=10.0, face="largest"):
        self.frame_rate, self.face, self.encode = frame_rate, face, encode
        self.tracker = FaceTracker(networks, frame_rate, self._measure)

    def _measure(self, points, presence, image):
        crop, _ = _crop(image, _region_of_points(points), MESH_SIZE)
        picture = crop[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
        return np.concatenate([face_shape(points), self.encode(picture)])

    def add(self, frame):
        self.tracker.add(frame)

    def finish(self, loudness=None):
        """See [`FaceGeometry.finish`]; places without a face are left out."""
        rows, seen = _chosen_rows(self.tracker, self.face, loudness)
        if rows is None:
            return _no_face(self.tracker, 1 / self.frame_rate), seen
        num_shape = len(SHAPE_NAMES) + len(POSE_NAMES)
        places = sorted(rows)
        values = np.stack([rows[place][num_shape:] for place in places]).astype(np.float32)
        return FeatureSequence(values, start=places[0] / self.frame_rate, step=1 / self.frame_rate), seen


def _chosen_rows(tracker, face, loudness):
    """Rows by place, or None where no face was seen; and what was seen."""
    rows, others = tracker.chosen(face, loudness)
    seen = {"frames": tracker.num_places, "frames_with_face": len(rows)}
    if others:
        how = "whose mouth moves with the voice" if face == "speaking" and loudness is not None else "largest"
        seen["face"] = f"the {how} of {others + 1}"
    return (rows or None), seen


def _no_face(tracker, step):
    if not tracker.num_places:
        return FeatureSequence(None, step=step, missing="there is no picture")
    return FeatureSequence(None, step=step, missing=f"no face is seen in {tracker.num_frames} frames")


def load_image_encoder(name, layer=-1, **options):
    """
    A function from a face's crop (uint8 [height, width, 3]) to features (float32 [features]).

    Args:
        name (`str`): id or folder of an image encoder of transformers.
        layer (`int`): whose hidden states are averaged over the patches; -1 is the last.
        options: as `from_pretrained` takes them (revision, token, ...).
    """
    from transformers import AutoImageProcessor, AutoModel

    # with torchvision the default would be another implementation, and other numbers
    processor = AutoImageProcessor.from_pretrained(name, backend="pil", **options)
    model = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
    model = getattr(model, "vision_model", model).eval()

    @torch.inference_mode()
    def encode(picture):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer][0]
        return (
            hidden.reshape(-1, hidden.shape[-1]).mean(dim=0).numpy()
            if hidden.ndim == 2
            else hidden.mean((1, 2)).numpy()
        )

    return encode


def own_weights():
    """`Path` of the networks' weights beside this file, where they lie in an installed package or a clone."""
    return Path(__file__).resolve().with_name(WEIGHTS_FILE)
