"""Reading an LLM's lower layers gives what all of its layers would give, whoever asks at once, and trains the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration
from hf_mse_adapter.lower_layers import states_after
from tests.hf_mse_adapter.tiny_backbones import ARCHITECTURES, build_backbone, build_batch

LATE = "<s>{text}"
TEMPLATE = "<Multimodal>{text}</Multimodal>Sentiment:{pseudo_tokens}"
FIELDS = {"audio_dim": 5, "vision_dim": 4, "mixer_dim": 16, "scales": (8, 32, 16), "audio_hidden_size": 8}


def build_model(llm, head="alone", head_layers=(1, 3), **fields):
    config = MseAdapterConfig(**FIELDS, head=head, head_layers=head_layers, **fields)
    return MseForConditionalGeneration.from_backbone(llm, config).eval()


def llm_inputs(llm, batch, length=12):
    mask = torch.ones(len(batch), length, dtype=torch.long)
    mask[0, :3] = 0
    embeds = llm.get_input_embeddings()(torch.arange(len(batch) * length).view(len(batch), length) % 97)
    return {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_the_whole_llm(architecture):
    llm = build_backbone(architecture, num_hidden_layers=4)
    inputs = llm_inputs(llm, range(2))
    given = inputs if architecture not in ("OPT",) else {n: v for n, v in inputs.items() if n != "position_ids"}
    with torch.no_grad():
        expected = llm(**given, output_hidden_states=True).hidden_states
        states = states_after(llm, (1, 3), given)
    for number, state in zip((1, 3), states, strict=True):
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(state[real], expected[number][real])


def test_layers_above_are_not_run():
    llm = build_backbone(num_hidden_layers=4)
    with torch.no_grad():
        for parameter in llm.model.layers[3].parameters():
            parameter.fill_(torch.nan)
    model = build_model(llm)
    assert model(**build_batch(labels=None)).head_output.isfinite().all()
    assert model(**build_batch(labels=None)).logits is None
    model = build_model(llm, head_layers=(1, 4))
    assert model(**build_batch(labels=None)).head_output.isnan().all()


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPTNeoX", "OPT"])
def test_constant_beginning_without_gradients_trains_the_same(architecture, monkeypatch):
    """The gradients of a prompt whose pseudo tokens stand last, against those of one pass over all positions."""
    llm = build_backbone(architecture, num_hidden_layers=4)
    model = build_model(llm, prompt_template=TEMPLATE)
    batch = build_batch(prompt_template=TEMPLATE)

    def gradients():
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.adapter.named_parameters()}

    passes = []
    original = type(llm.base_model).forward
    monkeypatch.setattr(
        type(llm.base_model), "forward", lambda self, *a, **k: passes.append(k) or original(self, *a, **k)
    )
    model(**batch)  # the trial of a few tokens
    passes.clear()
    loss, split = gradients()
    assert len(passes) == 2 and passes[1]["inputs_embeds"].shape[1] < passes[0]["inputs_embeds"].shape[1]
    monkeypatch.setattr("hf_mse_adapter.lower_layers.WORTH_A_PASS", 10_000)
    expected_loss, whole = gradients()
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=name)
    assert split["projector.projection.weight"].abs().max() > 0


def test_label_tokens_and_padding_side_do_not_matter():
    model = build_model(build_backbone(num_hidden_layers=4), prompt_template=TEMPLATE)
    with torch.no_grad():
        expected = model(**build_batch(labels=None, prompt_template=TEMPLATE)).head_output
        for side in ("left", "right"):
            batch = build_batch(padding_side=side, prompt_template=TEMPLATE)
            torch.testing.assert_close(model(**batch).head_output, expected)
        alone = [
            model(**build_batch(texts=[text], labels=None, prompt_template=TEMPLATE)).head_output
            for text in ("I love it",)
        ]
    torch.testing.assert_close(alone[0], expected[:1])


def test_head_beside_the_llms_own_answers():
    llm = build_backbone(num_hidden_layers=4)
    torch.manual_seed(1)
    alone = build_model(llm)
    torch.manual_seed(1)
    beside = build_model(llm, head="beside")
    batch = build_batch()
    with torch.no_grad():
        torch.testing.assert_close(beside(**batch).head_output, alone(**batch).head_output)
        assert beside(**batch).logits is not None


def test_threads_get_their_own_answers():
    model = build_model(build_backbone(num_hidden_layers=4))
    batches = [build_batch(texts=[text], labels=None) for text in ("I love it", "no", "it is great fun", "why")]
    with torch.no_grad():
        expected = [model(**batch).head_output for batch in batches]

    def answer(index):
        with torch.no_grad():
            return model(**batches[index % 4]).head_output

    with ThreadPoolExecutor(8) as threads:
        for index, output in enumerate(threads.map(answer, range(80))):
            torch.testing.assert_close(output, expected[index % 4])


def test_llm_stays_as_it_is():
    llm = build_backbone(num_hidden_layers=4)
    inputs = {"input_ids": torch.arange(10)[None] + 3}
    with torch.no_grad():
        before = llm(**inputs, output_hidden_states=True)
    model = build_model(llm, prompt_template=TEMPLATE)
    model(**build_batch(prompt_template=TEMPLATE)).loss.backward()
    with torch.no_grad():
        after = llm(**inputs, output_hidden_states=True)
    assert torch.equal(before.logits, after.logits)
    assert len(after.hidden_states) == len(before.hidden_states)
    assert all(map(torch.equal, before.hidden_states, after.hidden_states))


def test_save_and_load(tmp_path):
    llm = build_backbone(num_hidden_layers=4)
    model = build_model(llm)
    with torch.no_grad():
        model.adapter.layer_mix.weight.copy_(torch.tensor([0.3, -2.0]))
    model.save_pretrained(tmp_path)
    loaded = MseForConditionalGeneration.from_pretrained(tmp_path, backbone=llm)
    batch = build_batch(labels=None)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).head_output, model(**batch).head_output)
    assert loaded.config.head_layers == (1, 3)


def test_bad_layers_are_refused():
    for layers in ((), (0, 1), (2, 1), (1.5,), 3):
        with pytest.raises(ValueError, match=r"head_layers is .*; expected rising whole numbers"):
            MseAdapterConfig(**FIELDS, head="alone", head_layers=layers)
    with pytest.raises(ValueError, match=r"head_layers is .*; expected None, as head is 'none'"):
        MseAdapterConfig(**FIELDS, head_layers=(1,))
    with pytest.raises(ValueError, match=r"head_layers is \(5,\); expected layers from 1 to 4"):
        build_model(build_backbone(num_hidden_layers=4), head_layers=(5,))


def build_late_model(llm):
    return build_model(llm, fusion="head", prompt_template=LATE)


def test_fusion_at_the_head_starts_from_the_words_and_reads_audio_once_trained():
    model = build_late_model(build_backbone(num_hidden_layers=4))
    batch = build_batch(prompt_template=LATE)
    words = {name: value for name, value in batch.items() if not name.startswith(("audio", "vision"))}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).head_output, model(**words).head_output)
    model(**batch).loss.backward()
    assert model.adapter.projector.projection.weight.grad.abs().max() > 0
    with torch.no_grad():
        model.adapter.projector.projection.weight.normal_()
        assert (model(**batch).head_output - model(**words).head_output).abs().max() > 1e-3


def test_states_that_were_kept_give_the_same_loss_and_gradients():
    model = build_late_model(build_backbone(num_hidden_layers=4))
    with torch.no_grad():
        model.adapter.projector.projection.weight.normal_()
    batch = build_batch(prompt_template=LATE)
    states = model.llm_states(**batch)
    assert states.shape == (3, 2, 64)
    gradients = []
    for kept in ({}, {"llm_states": states}):
        model.zero_grad()
        model(**batch, **kept).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match=r"llm_states has the shape \[2, 2, 64\]; expected \[3, 2, hidden_size\]"):
        model(**batch, llm_states=states[:2])
    with pytest.raises(ValueError, match="llm_states is given, but fusion is 'prompt'"):
        build_model(build_backbone(num_hidden_layers=4))(**build_batch(), llm_states=states)


def test_fusion_at_the_head_saves_and_loads(tmp_path):
    llm = build_backbone(num_hidden_layers=4)
    model = build_late_model(llm)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.normal_()
        model.adapter.layer_mix.fit(torch.randn(9, 2, 64) * 3 + 1)
    batch = build_batch(prompt_template=LATE, labels=None)
    model.save_pretrained(tmp_path / "own")
    model.save_as_peft(tmp_path / "peft")
    with torch.no_grad():
        expected = model(**batch).head_output
        for folder in ("own", "peft"):
            loaded = MseForConditionalGeneration.from_pretrained(tmp_path / folder, backbone=llm)
            torch.testing.assert_close(loaded(**batch).head_output, expected)


def test_fusion_at_the_head_wants_what_it_needs():
    with pytest.raises(ValueError, match="fusion is 'late'; expected one of"):
        MseAdapterConfig(**FIELDS, fusion="late")
    with pytest.raises(ValueError, match="fusion is 'head'; expected 'prompt'"):
        MseAdapterConfig(**FIELDS, fusion="head")
    with pytest.raises(ValueError, match=r"expected a text with \{text\} once and no \{pseudo_tokens\}"):
        MseAdapterConfig(**FIELDS, head="alone", head_layers=(1,), fusion="head", prompt_template=TEMPLATE)
