"""What makes a training that was killed, or spread over processes, equal to one that was not."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback


def last_checkpoint(output_dir, world_size):
    """
    The newest checkpoint in `output_dir` that was written whole; None where there is none.

    A killed run may have been writing one: the trainer's state comes last, the random states shortly before it.
    """
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")}
    folders = [folder for folder, step in steps.items() if step.isdigit()]
    for folder in sorted(folders, key=lambda folder: int(steps[folder]), reverse=True):
        states = [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if all((folder / state).is_file() for state in states):
            return str(folder)
    return None


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
        lengths (`Sequence[int]`, *optional*): of the records.

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
