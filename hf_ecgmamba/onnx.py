"""`python -m hf_ecgmamba.onnx FOLDER`: a classifier as an ONNX file, for browsers, phones and servers without torch.

The file takes normalised millivolts as the feature extractor makes them, any batch and any length, and gives logits.
What a reader beside it must know (leads, rate, windows, normalisation, labels, thresholds) is in its metadata.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from .modeling_ecgmamba import EcgMambaForSequenceClassification

OPSET = 18
INPUTS = ("input_values", "attention_mask", "lead_mask")
# float32 in another order of operations; eight bits are measured on what they are for, a model's answers
TOLERANCE = 1e-4
# smaller tensors are worth less than what their rounding costs
SMALLEST_QUANTISED = 1024


def main(arguments=None):
    """Runs the command; returns its exit code: 0, or 2 with one line on stderr."""
    options = parser().parse_args(arguments)
    try:
        model = EcgMambaForSequenceClassification.from_pretrained(options.model)
        feature_extractor = EcgMambaFeatureExtractor.from_pretrained(options.model)
        output = Path(options.output or Path(options.model) / ("model.int8.onnx" if options.int8 else "model.onnx"))
        difference = export_onnx(model, feature_extractor, output, options.int8)
    except (ValueError, OSError, ImportError) as error:
        print(f"hf_ecgmamba.onnx: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, logits within {difference:.1e} of torch's")
    return 0


def parser():
    parser = argparse.ArgumentParser(prog="python -m hf_ecgmamba.onnx", description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="FOLDER", help="a folder, or a repository of the Hub")
    parser.add_argument("--output", metavar="FILE", help="by default model.onnx in that folder")
    parser.add_argument("--int8", action="store_true", help="weights of linear layers and convolutions in eight bits")
    return parser


def export_onnx(model, feature_extractor, path, int8=False):
    """
    Writes a classifier as ONNX, and reads it with onnxruntime before the file takes its name.

    Args:
        model (`EcgMambaForSequenceClassification`): left as it is.
        feature_extractor (`EcgMambaFeatureExtractor`): what it does to a recording goes into the metadata.
        path (`str` or `Path`): the file.
        int8 (`bool`, defaults to `False`): weights of linear layers and convolutions as eight-bit integers with one
            scale for each output; the arithmetic stays float32.

    Returns:
        `float`: the largest difference of a logit from torch's, over records of several lengths, some of them padded.

    Raises:
        ImportError: where onnx, onnxscript or onnxruntime is missing (the extra `onnx`).
        ValueError: where the file's logits are not torch's.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch.onnx writes with
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install it by `pip install 'hf-human-signals[onnx]'`") from error
    path = Path(path)
    wrapped = _Logits(model).eval().float()
    graph = _trace(wrapped, model.config.num_leads)
    if int8:
        _quantise_weights(graph)
    for name, value in metadata(model.config, feature_extractor).items():
        graph.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(graph)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        onnx.save(graph, unfinished)
        session = onnxruntime.InferenceSession(unfinished, providers=["CPUExecutionProvider"])
        difference = _largest_difference(session, wrapped, model.config)
        if not int8 and not difference <= TOLERANCE:
            raise ValueError(f"the ONNX logits differ from torch's by {difference:.2g}; expected at most {TOLERANCE}")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return difference


def metadata(config, feature_extractor):
    """What a reader of the file must know, as JSON strings by name."""
    reading = feature_extractor.to_dict()
    names = ("leads", "optional_leads", "sampling_rate", "window_seconds", "window_overlap")
    facts = {
        **{name: getattr(config, name) for name in names},
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "thresholds": config.thresholds,
        "window_pooling": config.window_pooling,
        "problem_type": config.problem_type,
        "reading": {name: reading.get(name) for name in ("bandpass", "remove_baseline", "normalization")},
    }
    return {name: json.dumps(value) for name, value in facts.items()}


class _Logits(nn.Module):
    """The classifier from tensor to tensor; both masks are always given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values, attention_mask, lead_mask):
        return self.model(input_values, attention_mask, lead_mask, return_dict=False)[0]


def _trace(model, leads):
    """The graph as an onnx.ModelProto, batch and time free."""
    free = torch.export.Dim.AUTO
    # two of everything that is free: a one would be taken for a constant
    real = torch.ones(2, 999, dtype=torch.bool)
    example = (torch.zeros(2, leads, 999), real, real[:, :leads])
    shapes = ({0: free, 2: free}, {0: free, 1: free}, {0: free})
    log = logging.getLogger("torch.onnx._internal.exporter")
    level = log.level
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch to itself: what it will rename, which packages it would also know
        log.setLevel(logging.ERROR)
        program = torch.export.export(model, example, dynamic_shapes=shapes)
        exported = torch.onnx.export(
            program, opset_version=OPSET, optimize=True, input_names=INPUTS, output_names=("logits",), verbose=False
        )
    log.setLevel(level)
    return exported.model_proto


def _largest_difference(session, model, config):
    generator, largest = torch.Generator().manual_seed(0), 0.0
    second = round(config.sampling_rate)
    for batch, time in ((1, 10 * second), (1, config.total_stride), (3, 4 * second + 7), (2, 25 * second - 1)):
        values = torch.randn(batch, config.num_leads, time, generator=generator)
        attention_mask = torch.ones(batch, time, dtype=torch.bool)
        lead_mask = torch.ones(batch, config.num_leads, dtype=torch.bool)
        if batch > 1:
            attention_mask[-1, time // 2 + 1 :] = False
            lead_mask[0, 0] = not config.optional_leads
        inputs = dict(zip(INPUTS, (values, attention_mask, lead_mask), strict=True))
        with torch.inference_mode():
            expected = model(**inputs).numpy()
        (came,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        largest = max(largest, float(np.abs(came - expected).max()))
    return largest


def _quantise_weights(graph):
    """Weights of Conv, MatMul and Gemm as int8 with one scale for each output, and DequantizeLinear before them."""
    from onnx import helper, numpy_helper

    axis_of, stored = {}, {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in stored:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            axis_of[node.input[1]] = 0 if node.op_type == "Conv" or transposed else -1
    before = []
    for name, axis in axis_of.items():
        weight = numpy_helper.to_array(stored[name])
        if weight.size < SMALLEST_QUANTISED:
            continue
        axis %= weight.ndim
        others = tuple(k for k in range(weight.ndim) if k != axis)
        scale = np.maximum(np.abs(weight).max(others), np.finfo(np.float32).tiny).astype(np.float32) / 127
        shape = [-1 if k == axis else 1 for k in range(weight.ndim)]
        numbers = np.rint(weight / scale.reshape(shape)).astype(np.int8)
        stored[name].CopyFrom(numpy_helper.from_array(numbers, f"{name}_int8"))
        graph.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        before.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dequantize", axis=axis))
    for node in reversed(before):
        graph.graph.node.insert(0, node)


if __name__ == "__main__":
    sys.exit(main())
