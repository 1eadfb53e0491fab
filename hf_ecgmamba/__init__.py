"""ECGMamba for the Hugging Face ecosystem: an ECG in, findings out.

The names load on first use, so that importing the package costs nothing beyond torch and transformers; touching a
model or the pipeline also makes it known to the Auto classes and to `transformers.pipeline`.
"""

from importlib import import_module

_HOMES = {
    "configuration_ecgmamba": ("EcgMambaConfig",),
    "modeling_ecgmamba": (
        "EcgMambaForMaskedModeling",
        "EcgMambaForSequenceClassification",
        "EcgMambaModel",
    ),
    "selective_scan": ("available_backends", "selective_scan"),
    "recording": ("Recording", "open_recording", "read_recording"),
    "feature_extraction_ecgmamba": ("EcgMambaFeatureExtractor",),
    "pipeline_ecg_classification": ("EcgClassificationPipeline",),
    "plotting": ("plot_recording",),
    "publishing": ("save_for_hub",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return __all__
