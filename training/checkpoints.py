"""What makes a training that was killed, or spread over processes, equal to one that was not.

A training script tells its run by `describe_run`, finds where to go on by `find_checkpoint`, writes down what the run
is made with by `record_run`, and trains by `train_from`. What it writes last is `FINISHED`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from training.reports import write_json

MADE_WITH, FINISHED = "made_with.json", "metrics.json"

# Arguments that change neither what is learnt nor which checkpoint is kept; all others must stay as they were. Where
# data lies and how it is read is among them, because its content is compared itself.
HARMLESS = {
    *("output_dir", "resume_from_checkpoint", "seeds", "data_path", "data_dir", "cache_dir", "preprocessing_workers"),
    *("clip_cache", "clip_processes", "publish_to", "card", "card_notice", "card_license"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
    *("log_level", "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen", "skip_memory_metrics"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push"),
    *("hub_revision", "save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "trust_remote_code"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
    *(
        "dataloader_multiprocessing_context",
        "ddp_timeout",
        "ddp_find_unused_parameters",
        "eval_accumulation_steps",
        "torch_empty_cache_steps",
    ),
    *("local_rank", "debug", "do_train", "do_eval", "do_predict"),
    # of the model's config: who wrote it, and what id2label says already
    *("transformers_version", "label2id"),
}


def describe_run(arguments, config, splits, num_processes):
    """
    Everything that a training's result depends on, by field. (Of an LLM or a pre-trained model: its name and commit;
    weights are not compared.)

    Args:
        arguments (`Iterable`): the script's dataclasses; a field that is None there is as `config` has it.
        config (`PreTrainedConfig`): of the model.
        splits (`dict[str, Dataset]`): those that decide on the result.
        num_processes (`int`).

    Returns:
        `dict`: of values as json gives them back, without `HARMLESS` fields.
    """
    fields = config.to_dict()
    for group in arguments:
        given = vars(group)
        if isinstance(group, TrainingArguments):
            # several GPUs of one process multiply its batch
            given = group.to_dict() | {"n_gpu": group.n_gpu}
            if group.mixed_precision != "no":
                # also where `accelerate launch` asked for it
                given["mixed_precision"] = group.mixed_precision
        fields |= {name: value for name, value in given.items() if value is not None or name not in fields}
    fields |= {
        f"{split} data": f"{len(dataset)} samples, blake2b {_hash_of(dataset)}" for split, dataset in splits.items()
    }
    fields["num_processes"] = num_processes
    fields = {name: value for name, value in fields.items() if name not in HARMLESS}
    return json.loads(json.dumps(fields, default=str))


def _hash_of(dataset):
    """Of a dataset's content, wherever it lies."""
    content = hashlib.blake2b(digest_size=8)
    for table in dataset.with_format("arrow").iter(batch_size=256):
        for batch in table.combine_chunks().to_batches():
            content.update(batch.serialize())
    return content.hexdigest()


def find_checkpoint(output_dir, made_with, resume):
    """
    Where a training starts.

    Args:
        output_dir: of the run.
        made_with (`dict`): by `describe_run`.
        resume (`bool` or path): False: anew. True: from the newest checkpoint of `output_dir`. A path: from this one.

    Returns:
        `str`: a checkpoint; None: start anew (with `resume`, that there is nothing to go on from is printed).

    Raises:
        OSError: `resume` is no folder.
        ValueError: `output_dir` holds another run already; or the run to go on with was made with other arguments,
            other data, or another number of processes: the message names each, with what came and what is expected.
    """
    folder, chosen = Path(output_dir), None
    if not isinstance(resume, bool):
        chosen = Path(resume)
        if not chosen.is_dir():
            raise NotADirectoryError(f"resume_from_checkpoint is {str(resume)!r}; expected a folder checkpoint-N")
    goes_on_here = resume is True or (chosen is not None and chosen.resolve().parent == folder.resolve())
    if not goes_on_here and holds_run(folder):
        raise ValueError(
            f"{folder} holds an earlier run; go on with it by --resume_from_checkpoint, or choose another output_dir"
        )
    if resume is False:
        return None
    if chosen is None and not holds_run(folder):
        _print_once(f"{folder} holds no checkpoint: starting anew")
        return None
    _require_same(folder if chosen is None else chosen.parent, made_with)
    if chosen is not None and not _is_whole(chosen, made_with["num_processes"]):
        raise ValueError(f"resume_from_checkpoint is {str(resume)!r}, which was not written whole; expected another")
    checkpoint = last_checkpoint(folder, made_with["num_processes"]) if chosen is None else str(chosen)
    if checkpoint is not None:
        _point_at_own_best(Path(checkpoint))
    elif not (folder / FINISHED).is_file():
        _print_once(f"{folder} holds no checkpoint that was written whole: starting anew")
    return checkpoint


def read_finished(folder):
    """Metrics by split and log of a training that came to its end in `folder`."""
    return tuple(json.loads((folder / name).read_text(encoding="utf-8")) for name in (FINISHED, "history.json"))


def holds_run(folder):
    """Whether a training has left something in `folder` that another must not be mixed with."""
    return (Path(folder) / FINISHED).is_file() or any(Path(folder).glob("checkpoint-*"))


def _require_same(folder, made_with):
    path = folder / MADE_WITH
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MADE_WITH}, so that nobody knows what its checkpoints were made with; expected one, or "
            "another output_dir"
        )
    before = json.loads(path.read_text(encoding="utf-8"))
    # as config and arguments name them, then the data
    names = [name for name in {**made_with, **before} if before.get(name) != made_with.get(name)]
    if names:
        changes = "; ".join(
            f"{name} is {_short(made_with.get(name))}, expected {_short(before.get(name))}" for name in names
        )
        raise ValueError(
            f"{folder} was made with other arguments, and going on with these would give what neither gives: "
            f"{changes}. Give the same, or choose another output_dir and start anew"
        )


def _print_once(text):
    if PartialState().is_main_process:
        print(text)


def _short(value):
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _point_at_own_best(checkpoint):
    """A run that has moved, or is called from elsewhere, finds its best checkpoint where it lies now."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best and not Path(best).is_dir() and (checkpoint.parent / Path(best).name).is_dir():
        write_json(path, state | {"best_model_checkpoint": str(checkpoint.parent / Path(best).name)})


def record_run(output_dir, made_with):
    """Write down what the run in `output_dir` is made with; call it on every process, before the training."""
    state = PartialState()
    # only when no process still looks for an earlier run
    state.wait_for_everyone()
    if state.is_local_main_process:
        write_json(Path(output_dir) / MADE_WITH, made_with)
    state.wait_for_everyone()


def train_from(trainer, checkpoint):
    """Train, from `checkpoint` if there is one; a training that early stopping had ended stays ended."""
    if checkpoint is None or not _stopped_early(checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    # Trainer would train on
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if trainer.args.load_best_model_at_end:
        trainer._load_best_model()
    else:
        trainer._load_from_checkpoint(checkpoint)


def _stopped_early(checkpoint):
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    stopping = state["stateful_callbacks"].get("EarlyStoppingCallback")
    if stopping is None:
        return False
    return stopping["attributes"]["early_stopping_patience_counter"] >= stopping["args"]["early_stopping_patience"]


def last_checkpoint(output_dir, world_size):
    """The newest checkpoint in `output_dir` that was written whole; None where there is none."""
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")}
    folders = [folder for folder, step in steps.items() if step.isdigit() and _is_whole(folder, world_size)]
    return str(max(folders, key=lambda folder: int(steps[folder]))) if folders else None


def _is_whole(checkpoint, world_size):
    """Whether a killed run had not just been writing it: the trainer's state comes last, shortly after the random
    states."""
    states = [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return all((checkpoint / state).is_file() for state in states)


class EpochSampler(torch.utils.data.Sampler):
    """
    Every record once an epoch, in an order drawn from (seed, epoch), as pairs (record, epoch).

    The epoch travels with the record, so that its augmentation depends on neither the process that makes it, nor
    the worker, nor on what was drawn before: a resumed training sees what the uninterrupted one would have seen,
    and two processes see what one would. What fills no whole step is left out of this epoch: a smaller last batch
    would count its records more than the others, and is cut differently by another number of processes. (The
    trainer's `dataloader_drop_last` would drop from the evaluation too.)

    With lengths, records of like length stand together: the shuffled records are cut into stretches of fifty steps,
    each stretch is sorted by length, and the steps are shuffled.

    Args:
        num_records (`int`), seed (`int`).
        step_size (`int`): records of one optimiser step, over all processes.
        lengths (`Sequence[float]`, *optional*): of the records, or what each of them costs.

    Raises:
        ValueError: there are fewer records than one step needs.
    """

    def __init__(self, num_records, seed, step_size=1, lengths=None):
        if num_records < step_size:
            raise ValueError(f"{num_records} training records do not fill one step of {step_size}")
        self.num_records, self.seed, self.step_size, self.epoch = num_records, seed, step_size, 0
        self.lengths = None if lengths is None else np.asarray(lengths)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.num_records // self.step_size * self.step_size

    def __iter__(self):
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.num_records)[: len(self)]
        if self.lengths is not None:
            order = self._grouped(order, generator)
        return ((int(record), self.epoch) for record in order)

    def _grouped(self, order, generator):
        stretches = np.split(order, range(50 * self.step_size, len(order), 50 * self.step_size))
        order = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in stretches])
        return generator.permutation(order.reshape(-1, self.step_size)).ravel()


class SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not reach it under several processes, nor after a resume."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))
