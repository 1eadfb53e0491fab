"""From `import hf_ecgmamba` on, `transformers.pipeline` knows our task and the network that answers by default."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder

from .default_network import default_network, has_default_network

TASK = "ecg-classification"
PIPELINES = "transformers.pipelines"


def register_task():
    """Now, where transformers' pipelines are loaded, else as soon as they are: they take seconds to load, which nobody
    shall wait for who wants no pipeline."""
    if PIPELINES in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPipelines) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPipelines())


def _register():
    from transformers import AutoModelForSequenceClassification

    task = {
        # transformers follows the path when the task is asked for
        "impl": f"{__package__}.EcgClassificationPipeline",
        "pt": (AutoModelForSequenceClassification,),
        "type": "multimodal",
    }
    if has_default_network():
        task["default"] = {"model": (default_network(), "main")}
    sys.modules[PIPELINES].PIPELINE_REGISTRY.supported_tasks.setdefault(TASK, task)


class _AfterPipelines(MetaPathFinder):
    """Finds nothing itself; what the others find registers our task when it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != PIPELINES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            _register()

        spec.loader.exec_module = load_and_register
        return spec
