"""Every ECG recipe fits its arguments and makes the model that it says."""

from pathlib import Path

import pytest

from training.recipe import parse_recipe
from training.run_ecg import ARGUMENTS, build_model

RECIPES = sorted((Path(__file__).resolve().parents[2] / "training" / "recipes").glob("ecg_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe, tmp_path):
    flags = [str(recipe), "--output_dir", str(tmp_path), "--bf16", "false"]
    if "dataset: simulated" not in recipe.read_text():
        flags += ["--data_dir", str(tmp_path)]
    *_, network, training = parse_recipe(ARGUMENTS, flags)
    model, reader = build_model(network, ("AF", "NORM"))
    assert (reader.sampling_rate, reader.window_seconds) == (network.sampling_rate, network.window_seconds)
    assert model.config.num_hidden_layers == network.num_hidden_layers
    assert training.load_best_model_at_end and training.metric_for_best_model == "macro_auc"


def test_a_flag_wins_over_the_recipe(tmp_path):
    flags = [str(RECIPES[0]), "--data_dir", str(tmp_path), "--output_dir", str(tmp_path), "--learning_rate", "5e-4"]
    *_, training = parse_recipe(ARGUMENTS, flags)
    assert training.learning_rate == 5e-4
