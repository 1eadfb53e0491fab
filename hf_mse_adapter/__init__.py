"""MSE-Adapter for the Hugging Face ecosystem: what was said, how it sounded and how it looked in, a feeling out.

The names load on first use, so that importing the package costs nothing beyond torch and transformers; touching a
model or the pipeline also makes it known to the Auto classes and to `transformers.pipeline`.

PEFT takes seconds to import. So it is not imported here, but as soon as anyone does, the adapter type MSE_ADAPTER is
made known to it: after `import hf_mse_adapter`, `AutoPeftModelForCausalLM.from_pretrained(folder)` works.
"""

import sys
from importlib import import_module

_HOMES = {
    "configuration_mse_adapter": ("MseAdapterConfig", "MseConfig"),
    "modeling_mse_adapter": (
        "ModalityEncoder",
        "MseAdapter",
        "MseForConditionalGeneration",
        "MultiScaleFusion",
        "TextGuideMixer",
    ),
    "adapted_language_model": ("MseOutput",),
    "tuner_mse_adapter": ("MseAdapterModel",),
    "answers": ("AnswerFormat", "Prediction"),
    "processing_mse_adapter": ("MseProcessor",),
    "pipeline_multimodal_sentiment": ("MultimodalSentimentPipeline",),
    "publishing_mse_adapter": ("save_for_hub",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return __all__


class _AfterPeft:
    """An import finder that imports the tuner, which registers itself, once PEFT has been imported.

    The tuner's own imports are watched too: where one of them is what imports PEFT, it must be complete first.
    """

    watched = ("peft", f"{__name__}.configuration_mse_adapter", f"{__name__}.modeling_mse_adapter")
    depth = 0

    def find_spec(self, name, path=None, target=None):
        if name not in self.watched:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.execute(execute, module)
        return spec

    def execute(self, execute, module):
        self.depth += 1
        try:
            execute(module)
        finally:
            self.depth -= 1
        if self.depth == 0:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module(f"{__name__}.tuner_mse_adapter")


if "peft" in sys.modules:
    import_module(f"{__name__}.tuner_mse_adapter")
else:
    sys.meta_path.insert(0, _AfterPeft())
