"""Frame features as functionals of short windows (`hf_mse_adapter.audio_features.window_functionals`)."""

from datasets import Array2D, Features

from hf_mse_adapter.audio_features import window_functionals


def with_window_functionals(dataset, modality, window, hop):
    """The Dataset with the features of one modality replaced by their `window_functionals`."""
    dim = dataset.features[modality].shape[1]
    features = Features({**dataset.features, modality: Array2D((None, 3 * dim), "float32")})

    def replace(row):
        values = window_functionals(row[modality], window, hop)
        return {modality: values, f"{modality}_steps": len(values)}

    return dataset.map(replace, features=features)
