"""ECGMamba: an ECG encoder, blocks of a bidirectional state-space model, and heads (arXiv 2406.10098).

A recording enters as [batch, leads, time] and becomes tokens [batch, tokens, hidden_size], one for every
`config.total_stride` samples. What is masked (padding, missing leads) is set to zero wherever a convolution could
see it and leaves the scan's state untouched: a record gives the same output alone and in any batch.
"""

import math
import os
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .checksums import forget_checksums, require_saved_weights
from .configuration_ecgmamba import EcgMambaConfig
from .depthwise_convolution import convolve_both_ways
from .numba_vectors import runs_directly
from .pipeline_code import save_pipeline_code
from .selective_scan import selective_scan
from .token_convolution import can_use_kernels, convolve_and_normalise, convolve_tokens, feed_forward


@dataclass
class EcgMambaModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, hidden_size)`): after the final norm; padded
            tokens are zero.
        pooler_output (`torch.FloatTensor` of shape `(batch, config.pooled_size)`): the real tokens, pooled.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): the encoder's tokens and what each block made of them.
        token_mask (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): the real tokens; None where all are.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    token_mask: torch.BoolTensor | None = None


@dataclass
class EcgMambaMaskedModelingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error over the hidden samples of the leads present.
        reconstruction (`torch.FloatTensor` of shape `(batch, leads, time)`): the signal as the model imagines it.
        masked_tokens (`torch.BoolTensor` of shape `(batch, tokens)`): the tokens that were hidden.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): the encoder's tokens and what each block made of them.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    masked_tokens: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


def is_plain(*modules):
    """Whether these modules' weights may be used without calling them. Not where something stands around one: a layer
    of PEFT, or a hook, by which gradients are asked for and weights are brought that lie elsewhere."""
    return all(
        type(module) in (nn.Conv1d, nn.LayerNorm)
        and "forward" not in vars(module)
        and not (module._forward_pre_hooks or module._forward_hooks)
        and not (module._backward_pre_hooks or module._backward_hooks)
        for module in modules
    )


def convolve_by(convolution, hidden_states, left=0, right=0):
    """A convolution as its module does it, over [batch, time, channels] with so many zeros before and after."""
    return convolution(F.pad(hidden_states.transpose(1, 2), (left, right))).transpose(1, 2)


def mask_padding(hidden_states, mask):
    """Zeroes the padded steps of [batch, time, channels]; `mask` [batch, time] is None where nothing is padded."""
    return hidden_states if mask is None else hidden_states * mask.unsqueeze(-1)


class EcgEncoder(nn.Module):
    """Convolutions that turn a multi-lead signal [batch, leads, time] into tokens [batch, tokens, hidden_size].

    Each layer is Conv1d, LayerNorm over the channels, GELU. Its zero padding to the left does not depend on the
    length, and to the right it fills up the last stride, so that n samples give ceil(n / stride) outputs whatever
    follows them. Norms over the batch or over time would let padding in.
    """

    def __init__(self, config):
        super().__init__()
        channels = (config.num_leads,) + (config.hidden_size,) * len(config.encoder_strides)
        shapes = zip(channels, channels[1:], config.encoder_kernel_sizes, config.encoder_strides, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, kernel, stride) for i, o, kernel, stride in shapes)
        self.norms = nn.ModuleList(nn.LayerNorm(o, eps=config.layer_norm_eps) for o in channels[1:])
        self.kernel_sizes, self.strides = tuple(config.encoder_kernel_sizes), tuple(config.encoder_strides)

    def forward(self, input_values, mask):
        hidden_states = input_values.transpose(1, 2)
        layers = zip(self.convolutions, self.norms, self.kernel_sizes, self.strides, strict=True)
        for convolution, norm, kernel, stride in layers:
            length = hidden_states.shape[1]
            # rounded up so, for ONNX divides towards zero
            left, num_outputs = (kernel - stride) // 2, (length + stride - 1) // stride
            if mask is not None:
                # a stride that holds one real sample is a real token
                mask = F.pad(mask, (0, num_outputs * stride - length)).unflatten(1, (num_outputs, stride)).any(-1)
            if not is_plain(convolution, norm):
                right = (num_outputs - 1) * stride + kernel - left - length
                hidden_states = norm(convolve_by(convolution, hidden_states, left, right))
                hidden_states = mask_padding(F.gelu(hidden_states), mask)
                continue
            weight, bias = convolution.weight, convolution.bias
            if can_use_kernels(hidden_states, weight, stride) and runs_directly(hidden_states, weight, bias):
                hidden_states = convolve_and_normalise(hidden_states, convolution, norm, num_outputs, mask)
            else:
                hidden_states = norm(convolve_tokens(hidden_states, weight, bias, stride, left, num_outputs))
                hidden_states = mask_padding(F.gelu(hidden_states), mask)
        return hidden_states, mask


class BiSSM(nn.Module):
    """Bidirectional selective state-space model over [batch, tokens, hidden_size].

    One input projection gives the signal x and the gate z. Each direction has its own depthwise convolution (causal
    forwards, anti-causal backwards), step sizes dt, B, C, A and D, held as [2, ...] parameters; the two scans are
    summed, gated by SiLU(z) and projected (ECGMamba; Mamba, arXiv 2312.00752, algorithm 2, in both directions).
    """

    def __init__(self, config):
        super().__init__()
        self.d_conv, self.d_state, self.dt_rank = config.d_conv, config.d_state, config.dt_rank
        self.dt_range = (config.dt_min, config.dt_max)
        channels = config.d_inner
        self.in_proj = nn.Linear(config.hidden_size, 2 * channels, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(2, channels, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(2, channels))
        self.x_proj = nn.Parameter(torch.empty(2, channels, config.dt_rank + 2 * config.d_state))
        self.dt_proj = nn.Parameter(torch.empty(2, config.dt_rank, channels))
        self.dt_bias = nn.Parameter(torch.empty(2, channels))
        self.A_log = nn.Parameter(torch.empty(2, channels, config.d_state))
        self.D = nn.Parameter(torch.empty(2, channels))
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=False)

    def forward(self, hidden_states, mask=None):
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = convolve_both_ways(x, self.conv_weight, self.conv_bias, mask)
        steps = torch.bmm(x.flatten(1, 2), self.x_proj).view(*x.shape[:3], -1)
        dt, B, C = steps.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            x,
            dt,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            dt_weight=self.dt_proj,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            gate=gate,
            mask=mask,
        )
        return self.out_proj(y)


class FeedForward(nn.Module):
    """Two convolutions along the tokens with GELU between, over [batch, tokens, hidden_size]."""

    def __init__(self, config):
        super().__init__()
        kernel = config.feed_forward_kernel_size
        self.expand = nn.Conv1d(config.hidden_size, config.intermediate_size, kernel, padding=kernel // 2)
        self.contract = nn.Conv1d(config.intermediate_size, config.hidden_size, kernel, padding=kernel // 2)

    def forward(self, hidden_states, mask=None):
        expand, contract = self.expand, self.contract
        if not is_plain(expand, contract):
            hidden_states = convolve_by(expand, mask_padding(hidden_states, mask))
            return convolve_by(contract, mask_padding(F.gelu(hidden_states), mask))
        if can_use_kernels(hidden_states, expand.weight) and runs_directly(hidden_states, expand.weight):
            return feed_forward(hidden_states, expand, contract, mask)
        padding = expand.padding[0]
        hidden_states = convolve_tokens(mask_padding(hidden_states, mask), expand.weight, expand.bias, padding=padding)
        hidden_states = mask_padding(F.gelu(hidden_states), mask)
        return convolve_tokens(hidden_states, contract.weight, contract.bias, padding=padding)


class EcgMambaBlock(GradientCheckpointingLayer):
    """LayerNorm, BiSSM, residual; LayerNorm, convolutional feed-forward, residual."""

    def __init__(self, config):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mixer = BiSSM(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states, mask=None):
        hidden_states = hidden_states + self.dropout(self.mixer(self.mixer_norm(hidden_states), mask))
        return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states), mask))


class Pooling(nn.Module):
    """The real tokens of [batch, tokens, hidden_size] as one vector: mean, maximum, both, or a learned weighting."""

    def __init__(self, config):
        super().__init__()
        self.kind = config.pooling
        if self.kind == "attention":
            self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_states, mask=None):
        if mask is None:
            mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool)
        mask = mask.unsqueeze(-1)
        if "max" in self.kind:
            highest = hidden_states.masked_fill(~mask, -torch.inf).amax(1)
            if self.kind == "max":
                return highest
        scores = self.score(hidden_states) if self.kind == "attention" else torch.zeros_like(hidden_states[..., :1])
        weights = scores.float().masked_fill(~mask, -torch.inf).softmax(1).to(hidden_states.dtype)
        average = (weights * hidden_states).sum(1)
        return torch.cat([average, highest], dim=-1) if self.kind == "mean_max" else average


class EcgMambaPreTrainedModel(PreTrainedModel):
    config_class = EcgMambaConfig
    base_model_prefix = "ecgmamba"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    # the losses are means over the batch, so Trainer shall divide them by its accumulation steps itself
    accepts_loss_kwargs = False
    _no_split_modules = ["EcgMambaBlock"]
    # bf16 has too few digits for the decay rates and step sizes that the scan exponentiates
    _keep_in_fp32_modules_strict = ["A_log", "D", "dt_bias"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`; ValueError for weights that are not those that `save_for_hub` left."""
        place = pretrained_model_name_or_path
        names = ("revision", "subfolder", "cache_dir", "local_files_only", "token", "proxies")
        options = {name: kwargs[name] for name in names if kwargs.get(name)}
        if place is not None and os.path.isdir(place):
            require_saved_weights(place, **options)
        loaded = super().from_pretrained(place, *args, **kwargs)
        if place is not None and not os.path.isdir(place):  # in the cache only now
            require_saved_weights(place, **options)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`; where the config names a pipeline, with its code."""
        forget_checksums(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)
        save_pipeline_code(self.config, save_directory)

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises ValueError: a recording has no vocabulary."""
        raise ValueError(f"{type(self).__name__} has no token embeddings to resize: it reads signals, not tokens")

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, BiSSM):
            self._init_state_space(module)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, EcgMambaForMaskedModeling):
            init.normal_(module.mask_embedding, std=0.02)

    def _init_state_space(self, module):
        """As Mamba does it: A = -(1 .. d_state) in every channel, D = 1, softplus(dt_bias) log-uniform in range."""
        init.copy_(module.A_log, torch.arange(1, module.d_state + 1).log().expand_as(module.A_log))
        init.ones_(module.D)
        low, high = map(math.log, module.dt_range)
        dt = torch.exp(low + (high - low) * torch.rand(module.dt_bias.shape, device=module.dt_bias.device))
        init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        init.uniform_(module.dt_proj, -(module.dt_rank**-0.5), module.dt_rank**-0.5)
        for weight, fan_in in ((module.x_proj, module.x_proj.shape[1]), (module.conv_weight, module.d_conv)):
            init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5)
        init.zeros_(module.conv_bias)


class EcgMambaModel(EcgMambaPreTrainedModel):
    """ECG encoder, blocks, final norm, pooling: a recording as a sequence of tokens and as one vector."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = EcgEncoder(config)
        self.blocks = nn.ModuleList(EcgMambaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooling = Pooling(config)
        self.post_init()

    def get_input_embeddings(self):
        """The first convolution: from here on gradients flow where all that is below is frozen."""
        return self.encoder.convolutions[0]

    def set_input_embeddings(self, value):
        self.encoder.convolutions[0] = value

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        lead_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> EcgMambaModelOutput:
        """
        Args:
            input_values (`torch.FloatTensor` of shape `(batch, leads, time)`): normalised millivolts at
                `config.sampling_rate`, leads in the order of `config.leads`; any length from one sample up.
            attention_mask (`torch.Tensor` of shape `(batch, time)`, *optional*): 1 for a sample, 0 for padding.
                Padding to the right, of any length, changes nothing; to the left, in multiples of
                `config.total_stride`.
            lead_mask (`torch.Tensor` of shape `(batch, leads)`, *optional*): 1 for a lead, 0 for a missing one.
            output_hidden_states (`bool`, *optional*): whether to return the tokens after every block.

        Raises:
            ValueError: for shapes that do not fit the config, a value that is not finite, or a row of padding alone.
        """
        self.check(input_values, attention_mask, lead_mask)
        return self.encode(input_values, attention_mask, lead_mask, output_hidden_states)

    def encode(
        self,
        input_values,
        attention_mask,
        lead_mask,
        output_hidden_states=None,
        masked_tokens=None,
        mask_embedding=None,
    ):
        """`forward` for checked input. The samples of `masked_tokens` (bool [batch, tokens]) are hidden from the
        network, and `mask_embedding` [hidden_size] takes the tokens' place (masked modelling)."""
        input_values = input_values.to(self.encoder.convolutions[0].weight.dtype)
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None:
            input_values = input_values * mask.unsqueeze(1)
        if lead_mask is not None:
            input_values = input_values * lead_mask.bool().unsqueeze(-1)
        if masked_tokens is not None:
            hidden = masked_tokens.repeat_interleave(self.config.total_stride, 1)[:, None, : input_values.shape[-1]]
            input_values = input_values.masked_fill(hidden, 0)

        hidden_states, mask = self.encoder(input_values, mask)
        if masked_tokens is not None:
            hidden_states = torch.where(masked_tokens.unsqueeze(-1), mask_embedding, hidden_states)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        every = [hidden_states]
        for block in self.blocks:
            hidden_states = block(hidden_states, mask)
            every.append(hidden_states)
        hidden_states = mask_padding(self.norm(hidden_states), mask)
        return EcgMambaModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pooling(hidden_states, mask),
            hidden_states=tuple(every) if wanted else None,
            token_mask=mask,
        )

    def check(self, input_values, attention_mask, lead_mask):
        leads = self.config.num_leads
        if input_values.ndim != 3 or input_values.shape[1] != leads or 0 in input_values.shape:
            raise ValueError(f"input_values is {tuple(input_values.shape)}; expected [batch, {leads} leads, time]")
        if not input_values.is_floating_point():
            raise ValueError(f"input_values is {input_values.dtype}; expected normalised millivolts, floating point")
        batch, _, time = input_values.shape
        for name, mask, shape in (
            ("attention_mask", attention_mask, (batch, time)),
            ("lead_mask", lead_mask, (batch, leads)),
        ):
            if mask is not None and mask.shape != shape:
                raise ValueError(f"{name} is {tuple(mask.shape)}; expected {shape} for these input_values")
        if torch.compiler.is_compiling():  # looking into values would break the graph
            return
        # a NaN anywhere is both, and one pass over the values finds them
        low, high = (value.item() for value in input_values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                "input_values holds NaN or infinity; expected finite millivolts (the feature extractor fills gaps)"
            )
        if attention_mask is None:
            return
        if not attention_mask.bool().any(1).all():
            raise ValueError("attention_mask has a row of padding alone; expected at least one real sample in each")
        left, stride = attention_mask.bool().int().argmax(1), self.config.total_stride
        if (left % stride).any():
            raise ValueError(
                f"attention_mask begins with {left.tolist()} samples of padding; expected multiples of {stride}, the "
                "samples of a token, or the padding on the right"
            )


class EcgMambaForSequenceClassification(EcgMambaPreTrainedModel):
    """ECGMamba with a linear classifier on the pooled tokens: several labels at once, one of many, or numbers."""

    def __init__(self, config):
        super().__init__(config)
        self.ecgmamba = EcgMambaModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        lead_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """
        Args:
            labels (*optional*): by `config.problem_type`, `multi_label_classification`: floats `(batch, num_labels)`
                in [0, 1], binary cross-entropy; `single_label_classification`: integers `(batch,)`, cross-entropy;
                `regression`: floats `(batch, num_labels)`, or `(batch,)` for one, squared error. Where problem_type
                is None, one label means regression, integers mean one of many, floats several at once.

        The other arguments are those of [`EcgMambaModel`]. `logits` are `(batch, num_labels)`.
        """
        outputs = self.ecgmamba(input_values, attention_mask, lead_mask, output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _loss(self, logits, labels):
        problem = self.config.problem_type
        if problem is None:
            problem = "multi" if labels.is_floating_point() else "single"
            problem = "regression" if self.config.num_labels == 1 else f"{problem}_label_classification"
        logits = logits.float()
        if problem == "single_label_classification":
            if labels.shape != logits.shape[:1] or labels.is_floating_point():
                raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}; expected one integer a record")
            self._check_labels(labels, 0, self.config.num_labels - 1)
            return F.cross_entropy(logits, labels)
        if problem == "regression" and self.config.num_labels == 1:
            labels = labels.reshape(-1, 1)
        if labels.shape != logits.shape:
            raise ValueError(f"labels is {tuple(labels.shape)}; expected {tuple(logits.shape)} for {problem}")
        if problem == "regression":
            self._check_labels(labels, -torch.finfo().max, torch.finfo().max)
            return F.mse_loss(logits, labels.float())
        self._check_labels(labels, 0, 1)
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    def _check_labels(self, labels, low, high):
        if torch.compiler.is_compiling():
            return
        wrong = labels[~((labels >= low) & (labels <= high))]  # NaN is in no range
        if len(wrong):
            raise ValueError(f"labels holds {wrong[0].item()}; expected values from {low:g} to {high:g}")


class EcgMambaForMaskedModeling(EcgMambaPreTrainedModel):
    """Self-supervised pre-training: spans of tokens are hidden and their samples reconstructed, in every lead.

    The encoder sees zeros in place of the hidden samples, so nothing leaks through its overlapping kernels. A choice:
    the paper trains with labels only.
    """

    def __init__(self, config):
        super().__init__(config)
        self.ecgmamba = EcgMambaModel(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.decoder = nn.Linear(config.hidden_size, config.total_stride * config.num_leads)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        lead_mask: torch.Tensor | None = None,
        masked_tokens: torch.BoolTensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> EcgMambaMaskedModelingOutput:
        """
        Args:
            masked_tokens (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): the tokens to hide; drawn at
                random as `config.mask_time_prob` and `config.mask_time_length` say where None.

        The other arguments are those of [`EcgMambaModel`].
        """
        self.ecgmamba.check(input_values, attention_mask, lead_mask)
        batch, leads, time = input_values.shape
        stride = self.config.total_stride
        tokens = -(-time // stride)
        if masked_tokens is None:
            masked_tokens = self.draw_spans(batch, tokens, attention_mask, input_values.device)
        elif masked_tokens.shape != (batch, tokens) or masked_tokens.dtype != torch.bool:
            came = f"{masked_tokens.dtype} {tuple(masked_tokens.shape)}"
            raise ValueError(f"masked_tokens is {came}; expected torch.bool {(batch, tokens)}")
        outputs = self.ecgmamba.encode(
            input_values,
            attention_mask,
            lead_mask,
            output_hidden_states,
            masked_tokens=masked_tokens,
            mask_embedding=self.mask_embedding,
        )
        reconstruction = self.decoder(outputs.last_hidden_state).view(batch, tokens, leads, stride)
        reconstruction = reconstruction.permute(0, 2, 1, 3).reshape(batch, leads, tokens * stride)[..., :time]
        counted = masked_tokens.repeat_interleave(stride, 1)[:, None, :time].expand(batch, leads, time)
        if attention_mask is not None:
            counted = counted & attention_mask.bool().unsqueeze(1)
        if lead_mask is not None:
            counted = counted & lead_mask.bool().unsqueeze(-1)
        squared_error = (reconstruction.float() - input_values.float()).square() * counted
        loss = squared_error.sum() / counted.sum().clamp(min=1)
        return EcgMambaMaskedModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            masked_tokens=masked_tokens,
            hidden_states=outputs.hidden_states,
        )

    def draw_spans(self, batch, tokens, attention_mask, device):
        """Random spans of `mask_time_length` tokens that cover about `mask_time_prob` of [batch, tokens], and at least
        one real token of every record."""
        length = min(self.config.mask_time_length, tokens)
        # of independent starts with probability p, a token stays visible with (1 - p) ** length
        start_probability = 1 - (1 - self.config.mask_time_prob) ** (1 / length)
        starts = torch.rand(batch, tokens, device=device) < start_probability
        begins = torch.arange(tokens, device=device) * self.config.total_stride
        real = (
            torch.ones(batch, tokens, device=device) if attention_mask is None else attention_mask[:, begins].float()
        )
        starts.scatter_(1, torch.multinomial(real, 1), True)
        return F.max_pool1d(F.pad(starts.float(), (length - 1, 0)), length, stride=1).bool()
