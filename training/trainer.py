"""What both training scripts do alike with transformers' Trainer and its arguments."""

from dataclasses import dataclass, field

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from training.checkpoints import EpochSampler, SetEpoch
from training.launch import runs_on_cpu

# Arguments of Trainer's that would be ignored here, or fail or spoil the result hours later: the value that they must
# keep, and why.
FIXED = {
    "push_to_hub": (
        False,
        "Trainer pushes checkpoints without code, card or thresholds; the folder that the training leaves goes up by "
        "python -m training.publish FOLDER --repo_id USER/NAME",
    ),
    "label_smoothing_factor": (
        0.0,
        "transformers' smoothing fits neither the many findings of an ECG nor an LLM's answer (for a classifying head "
        "that is alone there is head_label_smoothing)",
    ),
    "train_sampling_strategy": (
        "random",
        "every epoch's order is drawn anew, and an evaluation's is that of its labels (run_msa has group_by_length)",
    ),
    "dataloader_drop_last": (
        False,
        "training leaves out what fills no step by itself, and an evaluation must see every sample",
    ),
    "eval_do_concat_batches": (True, "metrics are those of all samples together"),
    "batch_eval_metrics": (False, "metrics are those of all samples together"),
    "prediction_loss_only": (False, "the best checkpoint is chosen by a metric, not by the loss"),
    "bf16_full_eval": (False, "the trained weights themselves would be cast, and saved so"),
    "fp16_full_eval": (False, "the trained weights themselves would be cast, and saved so"),
    "auto_find_batch_size": (False, "another batch size is another training; choose per_device_train_batch_size"),
}


@dataclass
class RecipeArguments(TrainingArguments):
    """TrainingArguments with the defaults of both scripts: an epoch's best checkpoint is kept, and runs resume."""

    eval_strategy: str = "epoch"
    save_strategy: SaveStrategy | str = "epoch"
    load_best_model_at_end: bool = True
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score before training ends; 0 or null: never."}
    )
    restore_callback_states_from_checkpoint: bool = True
    remove_unused_columns: bool | None = False
    dataloader_pin_memory: bool = torch.cuda.is_available()
    # every trained parameter takes part in every batch
    ddp_find_unused_parameters: bool | None = False
    lr_scheduler_type: str = "cosine"

    def __post_init__(self):
        # without it, the processes of a machine without accelerator would not find each other
        self.use_cpu = self.use_cpu or runs_on_cpu()
        super().__post_init__()
        for name, (value, reason) in FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {value!r}: {reason}")
        # by the flag, or by `accelerate launch --mixed_precision fp16`
        if self.mixed_precision == "fp16" and self.use_cpu:
            raise ValueError("fp16 is True, but there is no GPU; expected bf16 or neither")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 0:
            raise ValueError(f"early_stopping_patience is {self.early_stopping_patience}; expected 0 or more")
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience}, but eval_strategy is no; expected 0, or "
                "evaluations"
            )


class EpochTrainer(Trainer):
    """
    Trainer whose training samples carry their epoch, see [`EpochSampler`], and which stops early where its arguments
    say so. `costs` of the training samples put those of like cost into one batch.
    """

    def __init__(self, *, args, costs=None, **kwargs):
        stopping = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
        super().__init__(args=args, callbacks=stopping, **kwargs)
        self.costs = costs

    def _get_train_sampler(self, train_dataset=None):
        step_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochSampler(len(self.train_dataset), seed, step_size, self.costs)
        self.add_callback(SetEpoch(sampler))
        return sampler
