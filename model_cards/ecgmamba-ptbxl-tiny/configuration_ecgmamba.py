"""What an ECGMamba model is: every choice that shapes the network or the recordings it reads."""

import math

from transformers import PreTrainedConfig

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
POOLINGS = ("mean", "max", "mean_max", "attention")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class EcgMambaConfig(PreTrainedConfig):
    r"""
    Configuration of [`EcgMambaModel`] and its heads: an ECG classifier on a bidirectional selective state-space model
    (ECGMamba, arXiv 2406.10098). The paper names the parts; layer count, widths, state size and strides are not
    published, so the defaults here are choices.

    Args:
        leads (`tuple[str]`, defaults to the 12 leads in PTB-XL order):
            The leads that the network reads, in order, each named once.
        optional_leads (`tuple[str]`, defaults to none):
            Those of `leads` that a recording may lack; they are then filled with zeros and masked.
        sampling_rate (`float`, defaults to 100): samples per second that the network reads.
        window_seconds (`float`, defaults to 10): length of the windows that a long recording is cut into.
        window_overlap (`float`, defaults to 0.5): share of a window that it has in common with the next, in [0, 1).
        hidden_size (`int`, defaults to 128): width of a token.
        num_hidden_layers (`int`, defaults to 4): number of blocks.
        d_state (`int`, defaults to 16): states per channel of the state-space model, N in arXiv 2312.00752.
        d_conv (`int`, defaults to 4): taps of the depthwise convolution before the scan.
        expand (`int`, defaults to 1):
            Channels of the scan per hidden unit. One, not Mamba's two, because two directions already double them.
        dt_rank (`int` or `"auto"`, defaults to `"auto"`): rank of the step-size projection; auto is hidden_size / 16.
        dt_min, dt_max (`float`, defaults to 1e-3 and 1e-1): range of the step sizes at initialisation.
        encoder_kernel_sizes, encoder_strides (`tuple[int]`, default to (15, 7, 5) and (2, 2, 2)):
            The convolutions of the encoder; the product of the strides is the number of samples that become one
            token (8 by default: 10 s at 100 Hz become 125 tokens).
        intermediate_size (`int`, defaults to twice the hidden size): width inside the feed-forward.
        feed_forward_kernel_size (`int`, defaults to 3): taps of its two convolutions, odd.
        hidden_dropout (`float`, defaults to 0.1): dropout on what each block adds, and before the classifier.
        pooling (`"mean"`, `"max"`, `"mean_max"` or `"attention"`, defaults to `"mean"`):
            How tokens become one vector; mean_max puts both beside each other, twice as wide.
        layer_norm_eps (`float`, defaults to 1e-5).
        mask_time_prob (`float`, defaults to 0.5), mask_time_length (`int`, defaults to 5):
            Share of the tokens that masked modelling hides, in spans of so many tokens.
        thresholds (`list[float]`, *optional*):
            The score from which a label counts as found, one for each label in the order of `id2label`.
        window_pooling (`"max"` or `"mean"`, *optional*):
            How the windows of a long recording are pooled into its scores, where the thresholds were tuned so; by
            default the pipeline chooses by problem_type.

    Raises:
        ValueError: for a field out of its range; the message names it, what came and what is expected.
    """

    model_type = "ecgmamba"

    leads: tuple | list = LEADS
    optional_leads: tuple | list = ()
    sampling_rate: float = 100.0
    window_seconds: float = 10.0
    window_overlap: float = 0.5
    hidden_size: int = 128
    num_hidden_layers: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 1
    dt_rank: int | str = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    encoder_kernel_sizes: tuple | list = (15, 7, 5)
    encoder_strides: tuple | list = (2, 2, 2)
    intermediate_size: int | None = None
    feed_forward_kernel_size: int = 3
    hidden_dropout: float = 0.1
    pooling: str = "mean"
    layer_norm_eps: float = 1e-5
    mask_time_prob: float = 0.5
    mask_time_length: int = 5
    thresholds: list | None = None
    window_pooling: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("leads", "optional_leads", "encoder_kernel_sizes", "encoder_strides"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{name} is {value!r}; expected a list")
            setattr(self, name, tuple(value))
        whole_numbers = ("hidden_size", "num_hidden_layers", "d_state", "d_conv", "expand", "mask_time_length")
        for name in (*whole_numbers, "feed_forward_kernel_size"):
            self._require(name, is_whole(getattr(self, name)), "a whole number of at least 1")
        if self.dt_rank == "auto":
            self.dt_rank = math.ceil(self.hidden_size / 16)
        if self.intermediate_size is None:
            self.intermediate_size = 2 * self.hidden_size
        self._validate()

    def _validate(self):
        require = self._require
        require("leads", self.leads and len(set(self.leads)) == len(self.leads), "lead names, each named once")
        require("leads", all(isinstance(lead, str) and lead for lead in self.leads), "lead names")
        require("optional_leads", set(self.optional_leads) <= set(self.leads), f"some of the leads {self.leads}")
        for name in ("sampling_rate", "window_seconds", "layer_norm_eps"):
            require(name, is_number(getattr(self, name)) and getattr(self, name) > 0, "a number above 0")
        for name in ("window_overlap", "hidden_dropout"):
            require(name, is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        for name in ("dt_rank", "intermediate_size"):
            require(name, is_whole(getattr(self, name)), 'a whole number of at least 1 (dt_rank also "auto")')
        step_sizes = is_number(self.dt_min) and is_number(self.dt_max) and 0 < self.dt_min <= self.dt_max
        require("dt_max", step_sizes, f"at least dt_min ({self.dt_min}), both above 0")
        require("encoder_strides", self.encoder_strides and all(map(is_whole, self.encoder_strides)), "whole numbers")
        fits = len(self.encoder_kernel_sizes) == len(self.encoder_strides) and all(
            is_whole(kernel) and kernel >= stride
            for kernel, stride in zip(self.encoder_kernel_sizes, self.encoder_strides, strict=True)
        )
        require(
            "encoder_kernel_sizes", fits, f"one whole number for each stride in {self.encoder_strides}, no smaller"
        )
        require("feed_forward_kernel_size", self.feed_forward_kernel_size % 2 == 1, "an odd number")
        require("pooling", self.pooling in POOLINGS, f"one of {POOLINGS}")
        require("mask_time_prob", is_number(self.mask_time_prob) and 0 < self.mask_time_prob <= 1, "within (0, 1]")
        require("problem_type", self.problem_type in (None, *PROBLEM_TYPES), f"one of {PROBLEM_TYPES}")
        require("window_pooling", self.window_pooling in (None, "max", "mean"), 'None, "max" or "mean"')
        if self.thresholds is not None:
            fits = len(self.thresholds) == self.num_labels and all(
                is_number(t) and 0 <= t <= 1 for t in self.thresholds
            )
            require("thresholds", fits, f"a number in [0, 1] for each of the {self.num_labels} labels")

    def _require(self, name, condition, expected):
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def num_leads(self) -> int:
        return len(self.leads)

    @property
    def d_inner(self) -> int:
        """Channels of the scan in each direction."""
        return self.expand * self.hidden_size

    @property
    def pooled_size(self) -> int:
        """Width of a recording as one vector."""
        return 2 * self.hidden_size if self.pooling == "mean_max" else self.hidden_size

    @property
    def total_stride(self) -> int:
        """Samples that become one token."""
        return math.prod(self.encoder_strides)


def is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
