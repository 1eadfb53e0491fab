"""The Trainer of ECGMamba: the average of its weights is what it keeps, and teachers may stand beside the labels."""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import TrainerCallback

from training.trainer import EpochTrainer

AVERAGE = "average.safetensors"
# decay would pull these towards the scan's fastest forgetting, and a skip connection towards none
WITHOUT_DECAY = (".A_log", ".D")


class EcgTrainer(EpochTrainer):
    """
    EpochTrainer with what `args` (EcgTrainingArguments) ask for:

    - `average_decay`: after every step the average of the weights moves towards them, average = decay * average +
      (1 - decay) * weights, with a smaller decay in the first steps (min(decay, (1 + step) / (10 + step))). It is the
      average that is evaluated and kept; checkpoints hold both.
    - `distillation_weight`: this share of the loss is the cross-entropy against the mean probabilities of `teachers`,
      which see the same crops.

    Args:
        teachers (`list[EcgMambaForSequenceClassification]`): of the same labels in the same order.
    """

    def __init__(self, *, args, teachers=(), **kwargs):
        super().__init__(args=args, **kwargs)
        self.teachers = [teacher.to(args.device).eval() for teacher in teachers]
        self.average = None
        if args.average_decay:
            self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.add_callback(_Averaging(self))

    def get_decay_parameter_names(self, model):
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(WITHOUT_DECAY)]

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.teachers and model.training:
            seen = {name: value for name, value in inputs.items() if name != "labels"}
            with torch.no_grad():
                taught = sum(teacher(**seen).logits.float().sigmoid() for teacher in self.teachers)
            taught = F.binary_cross_entropy_with_logits(outputs.logits.float(), taught / len(self.teachers))
            loss = torch.lerp(loss, taught, self.args.distillation_weight)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged():
            return super().evaluation_loop(*args, **kwargs)

    @contextmanager
    def averaged(self):
        """The model holds the average of its weights inside, its own outside."""
        if self.average is None:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def keep_average(self):
        """The training is over: from here on the model is the average."""
        if self.average is not None:
            self.model.load_state_dict(self.average)
            self.average = None

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.average is not None and self.args.should_save:
            save_file(self.average, Path(output_dir or self.args.output_dir) / AVERAGE)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_average(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_average(self.state.best_model_checkpoint)
        self.keep_average()

    def _load_average(self, checkpoint):
        if self.average is not None:
            self.average = load_file(Path(checkpoint) / AVERAGE, device=str(self.args.device))


class _Averaging(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        weights = self.trainer.model.state_dict()
        average = self.trainer.average
        move = 1 - min(args.average_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], move)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.keep_average()
