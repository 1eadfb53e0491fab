"""A server's callers get their own answers: one model, one processor, many threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model

from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor
from hf_mse_adapter.answers import methods_of
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline

from .tiny_backbones import build_backbone, build_tokenizer

HEADS = {
    "none": {},
    "alone": {"head": "alone"},
    "beside": {"head": "beside"},
    "layers": {"head": "alone", "head_layers": (1, 2)},
    "layers beside": {"head": "beside", "head_layers": (1, 2)},
}


def clips():
    generator = torch.Generator().manual_seed(3)
    return [{"text": "word " * i, "audio": 3 * torch.randn(5, 5, generator=generator)} for i in range(1, 7)]


def assert_threads_agree(answer, num_calls=48):
    expected = [answer(index) for index in range(6)]
    assert len(set(expected)) == 6
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, [index % 6 for index in range(num_calls)]))
    assert answers == [pytest.approx(expected[index % 6], abs=1e-4) for index in range(num_calls)]


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "OPT", "Gemma2"])
@pytest.mark.parametrize("head", HEADS)
def test_every_thread_gets_its_own_answer(architecture, head):
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, label_step=0.5, dropout=0.0, **HEADS[head])
    model = get_peft_model(build_backbone(architecture), config).eval()
    processor, samples = MseProcessor.from_config(config, build_tokenizer()), clips()
    assert_threads_agree(lambda index: model.predict(processor.collate([samples[index]]), processor.answers)[0].value)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_every_method_in_threads(task):
    labels = {"task": task, "id2label": {0: "sad", 1: "glad"} if task == "classification" else None}
    config = MseAdapterConfig(audio_dim=5, vision_dim=4, label_step=0.5, dropout=0.0, **labels)
    model = MseForConditionalGeneration.from_backbone(build_backbone(), config)
    pipe = MultimodalSentimentPipeline(model.eval(), processor=MseProcessor.from_config(config, build_tokenizer()))
    samples = clips()
    for method in methods_of(task):
        expected = [pipe(sample, method=method) for sample in samples]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda sample, method=method: pipe(sample, method=method), samples * 4))
        assert answers == expected * 4
