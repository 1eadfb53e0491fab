"""Publishing: checked first, then one commit or nothing, by the real client of the Hub against a Hub on loopback."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants, snapshot_download

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, save_for_hub
from hf_ecgmamba.checksums import changed_files, write_checksums
from tests.hub_stub import Fault, HubStub
from training import publish
from training.publish import PublishError, prepare, push

ROOT = Path(__file__).resolve().parents[2]
ID = "someone/ecg"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small ECGMamba, as a training leaves it: with what else lies in a training's folder."""
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II"), hidden_size=16, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", window_seconds=4.0,
    )  # fmt: skip
    model, extractor = EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config)
    folder = save_for_hub(model, extractor, tmp_path_factory.mktemp("saved") / "ecg", dataset="noise")
    for private in ("checkpoint-3/model.safetensors", "predictions_test.csv", "made_with.json", "patient.dat"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_text("of a patient")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "ecg"))


@pytest.fixture
def staged(tmp_path):
    """What `push` takes: any files."""
    folder = tmp_path / "staged"
    folder.mkdir()
    for name, content in (("config.json", "{}"), ("README.md", "# a"), ("model.safetensors", "weights")):
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", slept.append)
    slept.clear()
    with HubStub().serving() as hub:
        hub.api = HfApi(endpoint=hub.endpoint, token="hf_stub")
        yield hub


slept = []


# -- what is checked before anything is sent --------------------------------------------------------------------------


def test_only_what_belongs_to_the_model_is_prepared_and_named(folder, tmp_path):
    kind, revision = prepare(folder, ID, tmp_path / "staging")
    names = publish.names_in(tmp_path / "staging")
    assert kind.name == "ECGMamba"
    assert {"config.json", "model.safetensors", "README.md", "handler.py", "example.csv", "checksums.json"} <= {*names}
    assert not [name for name in names if "checkpoint" in name or name.endswith((".dat", "made_with.json", "st.csv"))]
    card = (tmp_path / "staging" / "README.md").read_text()
    assert "THIS_" not in card and ID in card and f'"{revision}"' in card
    assert "THIS_REPOSITORY" in (folder / "README.md").read_text()  # the folder stays as it was
    (folder / "README.md").write_text(card.replace("# ECGMamba", "# My own words"))
    assert prepare(folder, ID, tmp_path / "again")[1] == revision  # of the same model, whatever its card says


def test_without_checksums_code_goes_up_that_the_model_needs_and_no_other(folder, tmp_path):
    (folder / "checksums.json").unlink()
    (folder / "my_secrets.py").write_text("")
    prepare(folder, ID, tmp_path / "staging")
    names = publish.names_in(tmp_path / "staging")
    assert "my_secrets.py" not in names
    assert {"recording.py", "selective_scan_numba.py", "pipeline_ecg_classification.py", "handler.py"} <= {*names}
    (folder / "selective_scan_numba.py").unlink()
    with pytest.raises(PublishError, match=r"lacks selective_scan_numba\.py, a code file; nothing was sent"):
        prepare(folder, ID, tmp_path / "again")


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip_a_bit, r"model\.safetensors in .* missing, or not as save_for_hub left it"),
        (lambda folder: (folder / "attribution.py").unlink(), r"attribution\.py in .* missing"),
        (lambda folder: (folder / "README.md").unlink(), r"lacks README\.md"),
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not one that save_for_hub writes"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "KeyError: 'bert'"),
        (lambda folder: (folder / "checksums.json").write_text("[]"), r"checksums\.json is damaged"),
        (lambda folder: (folder / "README.md").write_text("# No front matter"), "license is None"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "front matter is broken"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(PublishError, match=message) as caught:
        prepare(folder, ID, tmp_path / "staging")
    assert "\n" not in str(caught.value)


def test_a_folder_of_recordings_is_no_model(tmp_path):
    (tmp_path / "100.dat").write_bytes(b"0")
    with pytest.raises(SystemExit, match=r"publish: .* holds no config\.json"):
        publish.main([str(tmp_path), "--repo_id", ID])


@pytest.mark.parametrize("repo_id", ["ecg", "a/b/c", "someone/e cg", "", "../ecg"])
def test_a_name_that_the_hub_does_not_take_is_refused_first(tmp_path, repo_id):
    with pytest.raises(PublishError, match="repo_id is"):
        publish.publish(tmp_path, repo_id)


@pytest.mark.parametrize(
    "came, difference",
    [
        ({"findings": [{"label": "b", "score": 0.3}, {"label": "a", "score": 0.3}]}, None),  # of one score
        ({"findings": [{"label": "a", "score": 0.3004}, {"label": "b", "score": 0.3}]}, None),
        ({"findings": [{"label": "a", "score": 0.31}, {"label": "b", "score": 0.3}]}, "score 0.31, not 0.3 as"),
        ({"findings": [{"label": "a", "score": 0.3}, {"label": "c", "score": 0.3}]}, "label 'c', not 'b' as"),
        ({"findings": []}, "not"),
        ({"value": 1.0}, "not"),
        ({"findings": [{"label": "a", "score": None}, {"label": "b", "score": 0.3}]}, "score None"),
        ({"findings": [{"label": "a", "score": float("nan")}, {"label": "b", "score": 0.3}]}, "score nan"),
    ],
)
def test_answers_are_equal_up_to_rounding(came, difference):
    stored = {"findings": [{"label": "a", "score": 0.3}, {"label": "b", "score": 0.3}]}
    found = publish.first_difference(came, stored, 2e-3)
    assert found is None if difference is None else difference in found


@pytest.mark.slow  # it starts a fresh process
def test_weights_that_say_otherwise_are_refused(folder, capsys):
    (folder / "example_output.json").write_text(
        (folder / "example_output.json").read_text().replace('"score": 0.', '"score": 0.9')
    )
    write_checksums(folder)
    with pytest.raises(SystemExit, match=r"example\.csv the folder's model says .* stored in example_output\.json"):
        publish.main([str(folder), "--repo_id", ID, "--dry_run"])


# -- one commit or nothing --------------------------------------------------------------------------------------------


def test_one_commit_replaces_a_model_and_leaves_what_is_not_of_one(hub, staged):
    push(hub.api, ID, staged, tag="v1")
    remote = hub.repositories["model", ID]
    assert len(remote.commits) == 2 and remote.tags == {"v1": remote.sha}
    remote.files |= {"figure.png": b"", "notes.md": b"", ".gitattributes": b"", "pytorch_model.bin": b"old"}
    (staged / "model.safetensors").unlink()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (staged / name).write_text(name)
    push(hub.api, ID, staged, tag="v2")
    assert len(remote.commits) == 3
    assert {*remote.files} == {
        "config.json", "README.md", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "figure.png", "notes.md", ".gitattributes",
    }  # fmt: skip
    push(hub.api, ID, staged, tag="v2")  # once more: nothing to do
    assert len(remote.commits) == 3


def test_private_is_made_private_and_public_does_not_become_so(hub, staged):
    push(hub.api, ID, staged, private=True)
    assert hub.repositories["model", ID].private
    push(hub.api, "someone/open", staged)
    with pytest.raises(PublishError, match="is there already, and public"):
        push(hub.api, "someone/open", staged, private=True)


FOR_GOOD = [
    (401, "does not know you"), (403, "may not write"), (409, "another push"), (412, "somebody else pushed"),
    (429, "too many requests"), (500, r"has failed \(500\)"), ("drop", "no connection"),
]  # fmt: skip


@pytest.mark.parametrize("what, message", FOR_GOOD)
@pytest.mark.parametrize("path", ["/api/repos/create", "/api/models/.*/preupload", "/blobs/", "/api/models/.*/commit"])
def test_a_failure_leaves_no_new_repository(hub, staged, path, what, message):
    hub.faults.append(Fault("PUT" if path == "/blobs/" else "POST", path, what, times=100))
    with pytest.raises(PublishError, match=message) as caught:
        push(hub.api, ID, staged)
    assert hub.repositories == {}
    assert "\n" not in str(caught.value) and "run the command again" in str(caught.value)
    hub.faults.clear()
    push(hub.api, ID, staged)
    assert {*hub.files} == {"config.json", "README.md", "model.safetensors"}


@pytest.mark.parametrize("what, message", FOR_GOOD)
def test_a_failure_leaves_a_repository_as_it_was(hub, staged, what, message):
    push(hub.api, ID, staged)
    before = dict(hub.files)
    (staged / "model.safetensors").write_text("other weights")
    hub.faults.append(Fault("POST", "/commit/", what, times=100))
    with pytest.raises(PublishError, match=f"{message}.*as it was"):
        push(hub.api, ID, staged)
    assert hub.files == before


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/models/.*/commit", "/api/models/.*/tag"])
@pytest.mark.parametrize("what", [429, 500, 503, "drop", "lose answer"])
def test_what_passes_is_waited_for(hub, staged, path, what):
    headers = {"Retry-After": "7"} if what == 429 else {}
    hub.faults.append(Fault("POST", path, what, times=1, headers=headers))
    push(hub.api, ID, staged, tag="v1")
    remote = hub.repositories["model", ID]
    assert len(remote.commits) == 2 and remote.tags == {"v1": remote.sha}  # never twice
    assert what != 429 or 7.0 in slept


def test_who_pushed_meanwhile_loses_nothing(hub, staged):
    push(hub.api, ID, staged)
    remote = hub.repositories["model", ID]
    (staged / "config.json").write_text('{"mine": 1}')
    listing = hub.api.list_repo_files

    def somebody_pushes(*arguments, **options):
        names = listing(*arguments, **options)
        remote.files["config.json"] = b"theirs"
        remote.commit("theirs")
        return names

    hub.api.list_repo_files = somebody_pushes
    with pytest.raises(PublishError, match="somebody else pushed"):
        push(hub.api, ID, staged)
    assert hub.files["config.json"] == b"theirs"


def test_a_missing_tag_is_said_and_made_by_the_next_run(hub, staged):
    hub.faults.append(Fault("POST", "/tag/", 403))
    with pytest.raises(PublishError, match="is published, but the tag v1"):
        push(hub.api, ID, staged, tag="v1")
    push(hub.api, ID, staged, tag="v1")
    assert hub.repositories["model", ID].tags.keys() == {"v1"}


def test_interrupting_leaves_no_new_repository(hub, staged):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    hub.api.create_commit = interrupt
    with pytest.raises(KeyboardInterrupt):
        push(hub.api, ID, staged)
    assert hub.repositories == {}


# -- pulling what was pushed ------------------------------------------------------------------------------------------


def test_damage_on_the_way_down_is_noticed(hub, folder, tmp_path, monkeypatch):
    prepare(folder, ID, tmp_path / "staging")
    push(hub.api, ID, tmp_path / "staging")
    pull = {"endpoint": hub.endpoint, "max_workers": 1}
    # the client takes a truncated file up again
    hub.faults.append(Fault("GET", r"resolve/.*model\.safetensors$", "truncate"))
    whole = snapshot_download(ID, cache_dir=tmp_path / "whole", **pull)
    assert changed_files(whole) == []
    # but it does not see a changed bit
    hub.faults.append(Fault("GET", r"resolve/.*model\.safetensors$", "flip"))
    flipped = snapshot_download(ID, cache_dir=tmp_path / "flipped", **pull)
    assert changed_files(flipped) == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"model\.safetensors in .*: not the weights that were saved there"):
        EcgMambaForSequenceClassification.from_pretrained(flipped)


def test_the_command_says_whether_a_folder_is_whole(folder):
    def run():
        command = [sys.executable, str(ROOT / "hf_ecgmamba" / "checksums.py"), str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run().returncode == 0
    (folder / "README.md").write_text("a card of one's own")
    assert run().returncode == 0
    flip_a_bit(folder)
    done = run()
    assert done.returncode == 1 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_others_files_carry_no_checksums(folder, tmp_path):
    model = EcgMambaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    model.save_pretrained(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "checksums.json").exists()
    model.save_pretrained(folder)  # over it
    assert not (folder / "checksums.json").exists()
    assert torch.equal(
        EcgMambaForSequenceClassification.from_pretrained(folder).classifier.weight, model.classifier.weight
    )


@pytest.mark.parametrize("file", ["checksums.py", "pipeline_code.py"])
def test_both_packages_have_the_same_code(file):
    one, other = (ROOT / package / file for package in ("hf_ecgmamba", "hf_mse_adapter"))
    assert one.read_bytes() == other.read_bytes()


def test_an_mse_adapter_with_its_space(hub, tmp_path, capsys):
    """Whole, with the fresh process; test_hub_round_trip.py has the ECGMamba."""
    from hf_mse_adapter import MseAdapterConfig, MseForConditionalGeneration, MseProcessor
    from hf_mse_adapter import save_for_hub as save_mse_adapter
    from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer

    config = MseAdapterConfig(audio_dim=5, vision_dim=4)
    model = MseForConditionalGeneration.from_backbone(build_backbone(), config)
    folder = save_mse_adapter(model, MseProcessor.from_config(model.config, build_tokenizer()), tmp_path / "mse")
    (folder / "predictions_test.csv").write_text("every utterance of the data")
    publish.publish(folder, "someone/mse", space=True, api=hub.api)
    files = hub.repositories["model", "someone/mse"].files
    assert {"language_model/model.safetensors", "checksums.json", "handler.py"} <= {*files}
    assert "predictions_test.csv" not in files
    space = hub.repositories["space", "someone/mse"].files
    assert b"someone/mse" in space["app.py"] and not [name for name, data in space.items() if b"THIS_" in data]
    assert json.loads(files["config.json"])["model_type"] == "mse_adapter"
    printed = capsys.readouterr().out
    assert "checked" in printed and "/someone/mse/commit/" in printed
