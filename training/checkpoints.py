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
    folders = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for folder in reversed(folders):
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
    and two processes see what one would.

    With lengths, records of like length stand together: the shuffled records are cut into stretches of fifty batches,
    each stretch is sorted by length, and the batches are shuffled.

    Args:
        num_records (`int`), seed (`int`).
        batch_size (`int`): records of one step over all processes; only lengths need it.
        lengths (`Sequence[int]`, *optional*): of the records.
    """

    def __init__(self, num_records, seed, batch_size=1, lengths=None):
        self.num_records, self.seed, self.batch_size, self.epoch = num_records, seed, batch_size, 0
        self.lengths = None if lengths is None else np.asarray(lengths)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.num_records

    def __iter__(self):
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.num_records)
        if self.lengths is not None:
            order = self._grouped(order, generator)
        return ((int(record), self.epoch) for record in order)

    def _grouped(self, order, generator):
        batches = []
        for start in range(0, self.num_records, 50 * self.batch_size):
            stretch = order[start : start + 50 * self.batch_size]
            stretch = stretch[np.argsort(-self.lengths[stretch], kind="stable")]
            batches += [stretch[at : at + self.batch_size] for at in range(0, len(stretch), self.batch_size)]
        # the only batch that may be short stays last, where the loader drops it
        batches = [batches[index] for index in generator.permutation(len(batches) - 1)] + batches[-1:]
        return np.concatenate(batches)


class SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not reach it under several processes, nor after a resume."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))
