"""Many clips to a table: as the pipeline answers, one bad clip listed, again and again until all is there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub
from tests.hf_mse_adapter.odd_clips import voice, write
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer
from training.predict_clips import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    backbone = build_backbone("Llama")
    backbone.save_pretrained(folder / "llm")
    for name, labels in (("model", {0: "a", 1: "b"}), ("other", None)):
        torch.manual_seed(0)
        config = MseConfig(
            audio_dim=64,
            vision_dim=2,
            task="classification" if labels else "regression",
            id2label=labels,
            backbone_name_or_path=str(folder / "llm"),
        )
        model = MseForConditionalGeneration.from_backbone(backbone, config)
        front_ends = {"audio": {"type": "log_mel"}}
        processor = MseProcessor.from_config(
            model.config, build_tokenizer(), front_ends=front_ends, modalities=["audio"]
        )
        save_for_hub(model, processor, folder / name)
    clips = folder / "clips"
    (clips / "more").mkdir(parents=True)
    for number in range(5):
        place = clips / "more" if number > 2 else clips
        write(place / f"{number}.wav", video=None, audio="pcm_s16le", sound=(0.2 + 0.2 * number) * voice(1.0))
    (clips / "broken.wav").write_text("hello")
    (clips / "notes.txt").write_text("no clip")
    return folder


def table(output):
    rows = [row for path in output.glob("scores-*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]
    return {row["record"]: row for row in rows}


def arguments(folder, output, model="model", source="clips"):
    return ["--model", str(folder / model), "--input", str(folder / source), "--output", str(output)]


def test_a_folder_of_clips_becomes_a_table(folder, tmp_path, capsys):
    main([*arguments(folder, tmp_path), "--batch_size", "2", "--shard_size", "3"])
    assert "5 clips in" in capsys.readouterr().out
    rows = table(tmp_path)
    assert sorted(rows) == ["0.wav", "1.wav", "2.wav", "more/3.wav", "more/4.wav"]
    pipe = MultimodalSentimentPipeline(
        MseForConditionalGeneration.from_pretrained(folder / "model"),
        processor=MseProcessor.from_pretrained(folder / "model"),
        device="cpu",
    )
    for name, row in rows.items():
        answer = pipe(str(folder / "clips" / name))
        assert row["label"] == answer["label"] and json.loads(row["made_from"]) == answer["made_from"]
        assert row["score_a"] == pytest.approx(answer["probabilities"]["a"], abs=1e-5)
    failed = (tmp_path / "failed.csv").read_text().splitlines()
    assert failed[0] == "record,reason" and len(failed) == 2 and failed[1].startswith("broken.wav,")

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scores-*.parquet")}
    write(folder / "clips" / "late.wav", video=None, audio="pcm_s16le", sound=voice(1.0))
    main(arguments(folder, tmp_path))
    assert len(table(tmp_path)) == 6 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    (folder / "clips" / "late.wav").unlink()
    with pytest.raises(ValueError, match="was written with another model"):
        main(arguments(folder, tmp_path, model="other"))


def test_what_has_changed_is_read_anew_and_nothing_else_mixed_in(folder, tmp_path):
    clips = tmp_path / "clips"
    shutil.copytree(folder / "clips" / "more", clips)
    (clips / "list.csv").write_text("clip,text,speaker\n3.wav,,\n4.wav,,\n")
    listed = ["--model", str(folder / "model"), "--input", str(clips / "list.csv"), "--output", str(tmp_path / "out")]
    main(listed)
    before = table(tmp_path / "out")
    shutil.copy(folder / "clips" / "0.wav", clips / "3.wav")
    main(listed)
    after = table(tmp_path / "out")
    assert after["3.wav"]["score_a"] != before["3.wav"]["score_a"] and after["4.wav"] == before["4.wav"]
    # what the list says of a clip is part of what was read
    (clips / "list.csv").write_text("clip,text,speaker\n3.wav,,\n4.wav,well,Bo\n")
    main(listed)
    assert table(tmp_path / "out")["4.wav"]["source_state"] != after["4.wav"]["source_state"]
    assert table(tmp_path / "out")["3.wav"] == after["3.wav"]

    with pytest.raises(ValueError, match="another input"):
        main([*listed, "--input", str(folder / "clips")])
    with pytest.raises(ValueError, match="another model"):
        main([*listed, "--method", "greedy"])
    with FileLock(tmp_path / "out" / "run.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.predict.LOCK_SECONDS", 0.1)
        with pytest.raises(ValueError, match="another run is writing"):
            main(listed)
    shutil.copytree(folder / "llm", tmp_path / "llm")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    with torch.no_grad():
        llm.model.norm.weight[0] += 0.25
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="another model"):
        main([*listed, "--llm", str(tmp_path / "llm")])


def test_a_list_of_clips_says_what_is_known_of_them(folder, tmp_path):
    listed = folder / "clips" / "list.csv"
    listed.write_text("clip,text,start,end\n0.wav,Hello.,,\n0.wav,,0.2,0.8\nmore/3.wav,,,\n")
    main(arguments(folder, tmp_path, source="clips/list.csv"))
    rows = table(tmp_path)
    assert sorted(rows) == ["0.wav", "0.wav@0.2-0.8", "more/3.wav"]
    assert json.loads(rows["0.wav"]["made_from"])["unread"]["text"] == "the model was not trained on it"
    listed.write_text("path\n0.wav\n")
    with pytest.raises(ValueError, match="line 2: expected the columns clip"):
        main(arguments(folder, tmp_path, source="clips/list.csv"))


@pytest.mark.slow
def test_two_processes_write_one_table(folder, tmp_path):
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "training/predict_clips.py"]
    subprocess.run([sys.executable, *command, *arguments(folder, tmp_path)], cwd=ROOT, check=True)
    assert len(table(tmp_path)) == 5 and "broken.wav" in (tmp_path / "failed.csv").read_text()
