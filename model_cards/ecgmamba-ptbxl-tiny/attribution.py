"""What the model looked at: how much each sample of each lead moved the score of one label."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Attribution:
    """
    Args:
        label (`str`): the finding that is explained.
        leads (`tuple[str]`): the leads of `weights`, in order.
        weights (`np.ndarray` of shape `(leads, time)`): float32 in [0, 1], 1 where the model looked most.
        start (`float`): where the first sample lies in the recording, in seconds.
        sampling_rate (`float`): samples of `weights` per second.
    """

    label: str
    leads: tuple
    weights: np.ndarray
    start: float
    sampling_rate: float


def integrated_gradients(
    model, input_values, label_index, attention_mask=None, lead_mask=None, steps=64, batch_size=16
):
    """
    Integrated gradients (Sundararajan et al., arXiv 1703.01365) of one label's logit from the isoelectric line (zeros)
    to the recording: what each sample contributed. They are complete: they sum to
    `logit(recording) - logit(zeros)`, up to the error of the quadrature.

    The encoder's norms make the network almost blind to scale, so that the logit moves most where the recording has
    hardly faded in. Gauss-Legendre nodes u are therefore taken along alpha = u ** 2, dense near the zeros.

    Args:
        model (`EcgMambaForSequenceClassification`): in eval mode.
        input_values (`torch.FloatTensor` of shape `(1, leads, time)`): one recording or window.
        label_index (`int`): column of the logits.
        attention_mask (`torch.Tensor` of shape `(1, time)`, *optional*), lead_mask (`(1, leads)`, *optional*).
        steps (`int`): points on the path; `batch_size` of them pass through the model at once.

    Returns:
        `torch.FloatTensor` of shape `(leads, time)`, in units of the logit, on the device of `input_values`.

    Raises:
        ValueError: for a label index that the model does not have or more than one recording.
    """
    if input_values.ndim != 3 or input_values.shape[0] != 1:
        raise ValueError(f"input_values is {tuple(input_values.shape)}; expected one recording, [1, leads, time]")
    if not 0 <= label_index < model.config.num_labels:
        raise ValueError(f"label_index is {label_index}; expected 0 to {model.config.num_labels - 1}")
    nodes, node_weights = np.polynomial.legendre.leggauss(steps)
    nodes, node_weights = (nodes + 1) / 2, node_weights / 2
    alphas = torch.as_tensor(nodes**2, dtype=torch.float32, device=input_values.device)
    lengths = torch.as_tensor(node_weights * 2 * nodes, dtype=torch.float32, device=input_values.device)
    mean_gradient = torch.zeros_like(input_values[0], dtype=torch.float32)
    for alpha, length in zip(alphas.split(batch_size), lengths.split(batch_size), strict=True):
        path = (alpha[:, None, None] * input_values.float()).requires_grad_()
        masks = {
            name: mask.expand(len(alpha), -1)
            for name, mask in (("attention_mask", attention_mask), ("lead_mask", lead_mask))
            if mask is not None
        }
        with torch.enable_grad():
            logits = model(path, **masks).logits[:, label_index].float().sum()
            (gradient,) = torch.autograd.grad(logits, path)
        mean_gradient += (length[:, None, None] * gradient).sum(0)
    return mean_gradient * input_values[0].float()


def looked_at(contributions, sampling_rate, smoothing_seconds=0.06):
    """
    Contributions of samples, whose signs alternate within a beat, as a smooth map of where the model looked: their
    magnitude under a Gaussian of `smoothing_seconds` (about half a QRS complex), per lead, scaled so that its median
    over the leads present is 0 and its 99.5th percentile 1. Half of the page stays clear: a choice.

    Args:
        contributions (`torch.FloatTensor` of shape `(leads, time)`): from [`integrated_gradients`].

    Returns:
        `np.ndarray` of shape `(leads, time)`, float32 in [0, 1].
    """
    sigma = smoothing_seconds * sampling_rate
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(contributions.device)
    magnitude = contributions.abs().float()[:, None]
    smooth = torch.nn.functional.conv1d(magnitude, kernel[None, None], padding=reach)[:, 0].cpu().numpy()
    if not smooth.any():
        return np.zeros_like(smooth)
    usual, strongest = np.quantile(smooth[smooth.any(axis=1)], (0.5, 0.995))
    return np.clip((smooth - usual) / max(strongest - usual, np.finfo(np.float32).tiny), 0, 1).astype(np.float32)
