"""ECGMamba for the Hugging Face ecosystem: an ECG in, findings out.

The names load on first use, so that importing the package costs next to nothing beyond torch and transformers. The
import makes the task known to `transformers.pipeline`, and the network that answers where none is named; the first
touch of a class makes it known to the Auto classes: a folder then loads without trust_remote_code.
"""

from importlib import import_module

from .task_registration import register_task

_HOMES = {
    "configuration_ecgmamba": ("EcgMambaConfig",),
    "accelerated_mamba": ("accelerate_mamba",),
    "modeling_ecgmamba": ("EcgMambaForMaskedModeling", "EcgMambaForSequenceClassification", "EcgMambaModel"),
    "recording_channels": ("Recording",),
    "recording": ("open_recording", "open_recordings", "read_recording"),
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
    if _HOME_OF[name] in ("modeling_ecgmamba", "feature_extraction_ecgmamba", "pipeline_ecg_classification"):
        _register()
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return __all__


def _register():
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification

    import_module(f"{__name__}.pipeline_ecg_classification")  # registers its task
    from .configuration_ecgmamba import EcgMambaConfig
    from .feature_extraction_ecgmamba import EcgMambaFeatureExtractor
    from .modeling_ecgmamba import EcgMambaForSequenceClassification, EcgMambaModel

    AutoConfig.register(EcgMambaConfig.model_type, EcgMambaConfig, exist_ok=True)
    AutoModel.register(EcgMambaConfig, EcgMambaModel, exist_ok=True)
    AutoModelForSequenceClassification.register(EcgMambaConfig, EcgMambaForSequenceClassification, exist_ok=True)
    AutoFeatureExtractor.register(EcgMambaConfig, EcgMambaFeatureExtractor, exist_ok=True)


register_task()
