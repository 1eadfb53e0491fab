"""Attribution: complete, blind to what is masked, and pointing at what moved the score."""

import numpy as np
import pytest
import torch

from hf_ecgmamba.attribution import integrated_gradients, looked_at
from hf_ecgmamba.configuration_ecgmamba import EcgMambaConfig
from hf_ecgmamba.modeling_ecgmamba import EcgMambaForSequenceClassification


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II", "V1"), hidden_size=16, num_hidden_layers=2, d_state=4, num_labels=3,
        problem_type="multi_label_classification",
    )  # fmt: skip
    model = EcgMambaForSequenceClassification(config).eval()
    with torch.no_grad():  # at initialisation biases are zero and the norms see no scale at all: train a little away
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_integrated_gradients_sum_to_the_logits_difference(model):
    x = torch.randn(1, 3, 200)
    with torch.no_grad():
        difference = (model(x).logits - model(torch.zeros_like(x)).logits)[0]
    assert difference.abs().max() > 0.05
    for label in range(3):
        total = integrated_gradients(model, x, label).sum()
        assert total == pytest.approx(difference[label].item(), abs=2e-3 * difference.abs().max().item())


def test_steps_in_batches_give_the_same(model):
    x = torch.randn(1, 3, 120)
    whole = integrated_gradients(model, x, 1, steps=10, batch_size=10)
    torch.testing.assert_close(integrated_gradients(model, x, 1, steps=10, batch_size=3), whole, rtol=1e-4, atol=1e-6)


def test_masked_samples_and_leads_contribute_nothing(model):
    x = torch.randn(1, 3, 160)
    mask, leads = torch.ones(1, 160), torch.tensor([[1, 0, 1]])
    mask[:, 100:] = 0
    contributions = integrated_gradients(model, x, 0, attention_mask=mask, lead_mask=leads)
    assert contributions[:, 100:].abs().max() == 0 and contributions[1].abs().max() == 0
    assert contributions[0, :100].abs().max() > 0


def test_parameters_keep_no_gradient(model):
    integrated_gradients(model, torch.randn(1, 3, 80), 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_map_points_at_the_contribution():
    contributions = torch.full((2, 1000), 1e-3)
    contributions[1, 600:610] = torch.tensor([1.0, -1.0]).repeat(5)
    weights = looked_at(contributions, sampling_rate=100)
    assert weights.dtype == np.float32 and weights.min() == 0 and weights.max() == 1
    assert np.unravel_index(weights.argmax(), weights.shape)[0] == 1
    assert 595 < weights[1].argmax() < 615
    assert (weights[1, 640:] < 0.05).all() and (weights[0] < 0.05).all()
    assert (looked_at(torch.zeros(2, 50), 100) == 0).all()


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="label_index is 3; expected 0 to 2"):
        integrated_gradients(model, torch.randn(1, 3, 80), 3)
    with pytest.raises(ValueError, match="one recording"):
        integrated_gradients(model, torch.randn(2, 3, 80), 0)
