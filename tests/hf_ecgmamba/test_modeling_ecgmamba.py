"""The network: parity with independent references, indifference to padding, round trips, gradients, bad input."""

import copy

import pytest
import torch
from torch.nn import functional as F

from hf_ecgmamba import (
    EcgMambaConfig,
    EcgMambaForMaskedModeling,
    EcgMambaForSequenceClassification,
    EcgMambaModel,
)
from hf_ecgmamba.modeling_ecgmamba import BiSSM, EcgMambaBlock


def tiny_config(**changes):
    fields = {
        "leads": ("I", "II", "V1"),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "d_state": 4,
        "encoder_kernel_sizes": (5, 3),
        "encoder_strides": (2, 3),
        "num_labels": 3,
        "problem_type": "multi_label_classification",
    }
    return EcgMambaConfig(**(fields | changes))


def bissm_reference(mixer, hidden_states):
    """The equations of Mamba in both directions, one step and one channel group at a time, in float64."""
    p = {name: value.detach().double() for name, value in mixer.state_dict().items()}
    x_and_z = hidden_states.double() @ p["in_proj.weight"].T
    channels = x_and_z.shape[-1] // 2
    signal, gate = x_and_z[..., :channels], x_and_z[..., channels:]
    batch, time, _ = signal.shape
    total = torch.zeros_like(signal)
    for direction, order in ((0, range(time)), (1, range(time - 1, -1, -1))):
        step = 1 if direction == 0 else -1
        state = torch.zeros(batch, channels, mixer.d_state, dtype=torch.float64)
        for t in order:
            x = p["conv_bias"][direction].expand(batch, channels).clone()
            for k in range(mixer.d_conv):
                source = t - step * (mixer.d_conv - 1 - k)
                if 0 <= source < time:
                    x = x + p["conv_weight"][direction, :, k] * signal[:, source]
            x = x * torch.sigmoid(x)
            dt_low, B, C = (x @ p["x_proj"][direction]).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
            dt = torch.log1p(torch.exp(dt_low @ p["dt_proj"][direction] + p["dt_bias"][direction]))
            A = -torch.exp(p["A_log"][direction])
            state = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B[:, None, :]
            total[:, t] += (state * C[:, None, :]).sum(-1) + p["D"][direction] * x
    return (total * gate * torch.sigmoid(gate)) @ p["out_proj.weight"].T


def randomised(module):
    """Every parameter moved off its initial value, so that no zero bias or unit D hides an error."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def test_bissm_agrees_with_the_equations_in_float64():
    model = EcgMambaModel(tiny_config(expand=2))
    mixer = randomised(model.blocks[0].mixer)
    hidden_states = torch.randn(2, 37, 16)
    torch.testing.assert_close(
        mixer(hidden_states).double(), bissm_reference(mixer, hidden_states), atol=1e-4, rtol=1e-4
    )


def test_one_direction_agrees_with_the_mamba_of_transformers():
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    mixer = randomised(EcgMambaModel(tiny_config(expand=2)).blocks[0].mixer)
    with torch.no_grad():  # silence the backward direction: no output from its state, none past it
        mixer.x_proj[1, :, -mixer.d_state :] = 0
        mixer.D[1] = 0
    theirs = MambaMixer(
        MambaConfig(hidden_size=16, state_size=4, expand=2, conv_kernel=4, time_step_rank=mixer.dt_rank), layer_idx=0
    )
    with torch.no_grad():
        theirs.in_proj.weight.copy_(mixer.in_proj.weight)
        theirs.conv1d.weight.copy_(mixer.conv_weight[0].unsqueeze(1))
        theirs.conv1d.bias.copy_(mixer.conv_bias[0])
        theirs.x_proj.weight.copy_(mixer.x_proj[0].T)
        theirs.dt_proj.weight.copy_(mixer.dt_proj[0].T)
        theirs.dt_proj.bias.copy_(mixer.dt_bias[0])
        theirs.A_log.copy_(mixer.A_log[0])
        theirs.D.copy_(mixer.D[0])
        theirs.out_proj.weight.copy_(mixer.out_proj.weight)
    hidden_states = torch.randn(2, 50, 16)
    torch.testing.assert_close(mixer(hidden_states), theirs.eval()(hidden_states), atol=1e-4, rtol=1e-4)


def test_gradients_of_a_block_in_float64():
    block = randomised(EcgMambaModel(tiny_config(hidden_size=4, d_state=2)).blocks[0].double().eval())
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    names = [name for name, _ in block.named_parameters()]

    def run(hidden_states, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (hidden_states, mask))

    hidden_states = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (hidden_states, *block.parameters()))


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
@pytest.mark.parametrize("length", [1, 2, 7, 97])
def test_padding_changes_nothing(pooling, length):
    model = randomised(EcgMambaForSequenceClassification(tiny_config(pooling=pooling))).eval()
    record = torch.randn(1, 3, length)
    alone = model(record, output_hidden_states=True)
    assert alone.logits.isfinite().all()
    for right in (1, 5, 6, 100):
        batch = torch.randn(3, 3, length + right)  # garbage where the padding is
        batch[0, :, :length] = record[0]
        mask = torch.ones(3, length + right, dtype=torch.long)
        mask[0, length:] = 0
        padded = model(batch, mask, output_hidden_states=True)
        torch.testing.assert_close(padded.logits[:1], alone.logits, atol=1e-5, rtol=0)
        tokens = alone.hidden_states[-1].shape[1]
        torch.testing.assert_close(padded.hidden_states[-1][:1, :tokens], alone.hidden_states[-1], atol=1e-5, rtol=0)


def test_padding_to_the_left_in_whole_tokens_changes_nothing():
    model = randomised(EcgMambaForSequenceClassification(tiny_config())).eval()
    record = torch.randn(1, 3, 50)
    mask = torch.cat((torch.zeros(1, 12), torch.ones(1, 50)), 1)
    padded = model(F.pad(record, (12, 0), value=3.0), mask)
    torch.testing.assert_close(padded.logits, model(record).logits, atol=1e-5, rtol=0)


def test_both_directions_reach_every_token():
    model = randomised(EcgMambaModel(tiny_config())).eval()
    record = torch.randn(1, 3, 600)
    hidden_states = model(record).last_hidden_state
    for changed_sample, far_token in ((0, 60), (599, 40)):
        changed = record.clone()
        changed[..., changed_sample] += 10
        assert not torch.equal(model(changed).last_hidden_state[:, far_token], hidden_states[:, far_token])


def test_a_missing_lead_is_as_good_as_zero():
    model = randomised(EcgMambaForSequenceClassification(tiny_config())).eval()
    record = torch.randn(2, 3, 60)
    lead_mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    zeroed = record.clone()
    zeroed[1, 1] = 0
    assert torch.equal(model(record, lead_mask=lead_mask).logits, model(zeroed).logits)


def test_mamba_initialisation_and_round_trip_in_shards(tmp_path):
    config = tiny_config(hidden_size=64)
    model = EcgMambaForSequenceClassification(config)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    again = EcgMambaForSequenceClassification.from_pretrained(tmp_path / "sharded", device_map="auto")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

    # an encoder alone, loaded into a classifier; and a checkpoint of the encoder's convolutions alone: what is
    # missing is initialised as Mamba does it, not left as from_pretrained's empty memory holds it
    model.ecgmamba.save_pretrained(tmp_path / "base")
    classifier = EcgMambaForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(classifier.ecgmamba.blocks[1].mixer.A_log, model.ecgmamba.blocks[1].mixer.A_log)
    state = {key: value for key, value in model.ecgmamba.state_dict().items() if key.startswith("encoder")}
    partial = EcgMambaModel.from_pretrained(None, config=config, state_dict=state)
    for fresh in (model.ecgmamba, partial):
        mixer = fresh.blocks[0].mixer
        assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 5.0).expand(2, 64, 4))
        assert torch.equal(mixer.D, torch.ones(2, 64))
        dt = F.softplus(mixer.dt_bias)
        assert dt.min() >= 0.99e-3 and dt.max() <= 1.01e-1 and dt.std() > 0.01
        assert mixer.x_proj.abs().max() <= 64**-0.5 and mixer.x_proj.std() > 0.05


def test_bfloat16_keeps_the_rates_exact_and_the_answer_close(tmp_path):
    model = randomised(EcgMambaForSequenceClassification(tiny_config())).eval()
    model.save_pretrained(tmp_path)
    half = EcgMambaForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.classifier.weight.dtype == torch.bfloat16
    assert torch.equal(half.ecgmamba.blocks[0].mixer.A_log, model.ecgmamba.blocks[0].mixer.A_log)
    record = torch.randn(2, 3, 500)
    exact = model(record).logits
    torch.testing.assert_close(half(record).logits.float(), exact, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(record).logits
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = EcgMambaForSequenceClassification(tiny_config(hidden_dropout=0.0)).train()
    recomputing = copy.deepcopy(model)
    recomputing.gradient_checkpointing_enable()
    assert any(isinstance(m, EcgMambaBlock) and m.gradient_checkpointing for m in recomputing.modules())
    record, labels = torch.randn(2, 3, 60), torch.randint(2, (2, 3)).float()
    for each in (model, recomputing):
        each(record, labels=labels).loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_in_one_graph_it_answers_the_same(backend):
    model = randomised(EcgMambaForSequenceClassification(tiny_config())).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    record, mask = torch.randn(2, 3, 60), torch.ones(2, 60)
    mask[1, 40:] = 0
    with torch.no_grad():
        torch.testing.assert_close(compiled(record, mask).logits, model(record, mask).logits, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_problem_type():
    record = torch.randn(4, 3, 30)
    cases = [
        ("multi_label_classification", 3, torch.rand(4, 3).round(), F.binary_cross_entropy_with_logits),
        ("single_label_classification", 3, torch.randint(3, (4,)), F.cross_entropy),
        ("regression", 3, torch.randn(4, 3), F.mse_loss),
        ("regression", 1, torch.randn(4), lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
    ]
    for problem_type, num_labels, labels, expected in cases:
        for stated in (problem_type, None) if num_labels == 1 or problem_type != "regression" else (problem_type,):
            model = EcgMambaForSequenceClassification(tiny_config(problem_type=stated, num_labels=num_labels)).eval()
            outputs = model(record, labels=labels)
            torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


def test_masked_modelling_hides_what_it_asks_for():
    model = randomised(EcgMambaForMaskedModeling(tiny_config())).eval()
    record = torch.randn(2, 3, 62)  # the last token covers two samples only
    masked_tokens = torch.zeros(2, 11, dtype=torch.bool)
    masked_tokens[0, 3:5] = masked_tokens[1, 10] = True
    lead_mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    outputs = model(record, lead_mask=lead_mask, masked_tokens=masked_tokens)
    assert outputs.reconstruction.shape == record.shape
    differences = (outputs.reconstruction - record).square()
    expected = torch.cat((differences[0, :2, 18:30].flatten(), differences[1, :, 60:].flatten())).mean()
    torch.testing.assert_close(outputs.loss, expected)
    peeking = record.clone()
    peeking[0, :, 18:30] = 7.0
    again = model(peeking, lead_mask=lead_mask, masked_tokens=masked_tokens)
    assert torch.equal(again.reconstruction, outputs.reconstruction)
    outputs.loss.backward()
    assert model.mask_embedding.grad.abs().sum() > 0


def test_masked_modelling_draws_spans_of_the_share_asked_for():
    model = EcgMambaForMaskedModeling(tiny_config(mask_time_prob=0.4, mask_time_length=5))
    masked = model.draw_spans(64, 500, None, "cpu")
    assert 0.3 < masked.float().mean() < 0.5
    assert model.draw_spans(8, 1, None, "cpu").all()


def test_masked_modelling_hides_a_real_token_of_every_record():
    model = EcgMambaForMaskedModeling(tiny_config(mask_time_prob=0.01, mask_time_length=1))
    mask = (torch.arange(600) < torch.tensor([[3], [600]])).long()
    for _ in range(10):
        outputs = model(torch.randn(2, 3, 600), mask)
        assert outputs.masked_tokens[0, 0] and outputs.masked_tokens[1].any()
        assert outputs.loss > 0


def test_a_pretrained_encoder_starts_a_classifier(tmp_path):
    pretrained = EcgMambaForMaskedModeling(tiny_config())
    pretrained.save_pretrained(tmp_path)
    classifier = EcgMambaForSequenceClassification.from_pretrained(tmp_path)
    for name, value in pretrained.ecgmamba.state_dict().items():
        assert torch.equal(classifier.ecgmamba.state_dict()[name], value), name


def test_a_tuple_where_one_is_asked_for():
    model = EcgMambaForSequenceClassification(tiny_config()).eval()
    record = torch.randn(1, 3, 60)
    (logits,) = model(record, return_dict=False)
    assert torch.equal(logits, model(record).logits)
    model.config.return_dict = False
    assert torch.equal(logits, model(record)[0])


@pytest.mark.parametrize("inputs", [torch.zeros(3, 50), torch.zeros(1, 4, 50)])
def test_masked_modelling_names_bad_input_too(inputs):
    with pytest.raises(ValueError, match="input_values is"):
        EcgMambaForMaskedModeling(tiny_config())(inputs)
    with pytest.raises(ValueError, match=r"masked_tokens is torch\.int64"):
        EcgMambaForMaskedModeling(tiny_config())(torch.zeros(1, 3, 60), masked_tokens=torch.ones(1, 10).long())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_values": torch.zeros(2, 4, 50)}, "input_values is \\(2, 4, 50\\)"),
        ({"input_values": torch.zeros(3, 50)}, "input_values is \\(3, 50\\)"),
        ({"input_values": torch.zeros(1, 3, 0)}, "input_values is \\(1, 3, 0\\)"),
        ({"input_values": torch.zeros(1, 3, 50, dtype=torch.int16)}, "input_values is torch.int16"),
        ({"input_values": torch.full((1, 3, 50), float("nan"))}, "input_values holds NaN"),
        (
            {"input_values": torch.zeros(1, 3, 50), "attention_mask": torch.ones(1, 49)},
            "attention_mask is \\(1, 49\\)",
        ),
        ({"input_values": torch.zeros(1, 3, 50), "attention_mask": torch.zeros(1, 50)}, "padding alone"),
        (
            {"input_values": torch.zeros(1, 3, 50), "attention_mask": (torch.arange(50) >= 5)[None]},
            "attention_mask begins with \\[5\\] samples",
        ),
        (
            {"input_values": torch.zeros(1, 3, 50), "labels": torch.full((1, 3), float("nan"))},
            "labels holds nan",
        ),
        ({"input_values": torch.zeros(1, 3, 50), "labels": torch.full((1, 3), 7.0)}, "labels holds 7"),
        ({"input_values": torch.zeros(1, 3, 50), "lead_mask": torch.ones(1, 2)}, "lead_mask is \\(1, 2\\)"),
        ({"input_values": torch.zeros(1, 3, 50), "labels": torch.zeros(1, 2)}, "labels is \\(1, 2\\)"),
    ],
)
def test_bad_input_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        EcgMambaForSequenceClassification(tiny_config())(**inputs)


def test_single_label_wants_integers():
    model = EcgMambaForSequenceClassification(tiny_config(problem_type="single_label_classification"))
    with pytest.raises(ValueError, match="one integer a record"):
        model(torch.zeros(2, 3, 50), labels=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected values from 0 to 2"):
        model(torch.zeros(2, 3, 50), labels=torch.tensor([0, 5]))


def test_scan_parameters_of_each_direction_are_its_own():
    mixer = BiSSM(tiny_config())
    for name in ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D"):
        assert getattr(mixer, name).shape[0] == 2, name
