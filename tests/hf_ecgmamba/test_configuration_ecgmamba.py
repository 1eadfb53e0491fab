import pytest

from hf_ecgmamba import EcgMambaConfig


def test_defaults_make_some_hundred_tokens_of_ten_seconds():
    config = EcgMambaConfig()
    assert len(config.leads) == 12
    assert 100 <= config.window_seconds * config.sampling_rate / config.total_stride <= 500
    assert config.dt_rank == 8


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    config = EcgMambaConfig(
        leads=("I", "II", "V1"),
        optional_leads=["V1"],
        id2label={0: "normal", 1: "atrial fibrillation", 2: "other"},
        thresholds=[0.2, 0.5, 0.7],
        problem_type="multi_label_classification",
        dt_rank=3,
    )
    config.save_pretrained(tmp_path)
    assert EcgMambaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert EcgMambaConfig.from_pretrained(tmp_path).leads == ("I", "II", "V1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("leads", ()),
        ("leads", ("I", "I")),
        ("leads", "I"),
        ("optional_leads", ("V9",)),
        ("sampling_rate", 0),
        ("sampling_rate", float("nan")),
        ("window_seconds", -1),
        ("window_overlap", 1.0),
        ("hidden_size", 0),
        ("hidden_size", 12.5),
        ("num_hidden_layers", True),
        ("d_state", 0),
        ("d_conv", "4"),
        ("expand", 0),
        ("dt_rank", "large"),
        ("dt_max", 1e-4),
        ("encoder_strides", ()),
        ("encoder_kernel_sizes", (3, 3)),
        ("encoder_kernel_sizes", (1, 7, 5)),
        ("intermediate_size", 0),
        ("feed_forward_kernel_size", 4),
        ("hidden_dropout", 1.5),
        ("pooling", "median"),
        ("layer_norm_eps", 0),
        ("mask_time_prob", 0.0),
        ("mask_time_length", 0),
        ("problem_type", "ranking"),
        ("thresholds", [0.5]),
        ("thresholds", [0.5, 50]),
        ("window_pooling", "median"),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        EcgMambaConfig(**{field: value})
