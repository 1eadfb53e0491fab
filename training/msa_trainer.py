"""transformers' Trainer for a model that answers: its loss, its validation and the field's metrics."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from training.metrics import load_metric
from training.trainer import EpochTrainer


class MseTrainer(EpochTrainer):
    """Trainer that answers where others compute logits."""

    def __init__(self, *, held_out, answer_method, **kwargs):
        super().__init__(eval_dataset=held_out["valid"], **kwargs)
        self.held_out, self.answer_method = held_out, answer_method
        # label tokens are averaged over all processes and accumulated batches; a head that is alone counts samples,
        # of which every batch has equally many
        self.model_accepts_loss_kwargs = self.model.config.head != "alone"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        smoothing = self.args.head_label_smoothing
        if not smoothing:
            if self.model.config.head == "beside":
                # the head's loss is a mean over samples, whatever number of label tokens each of them has; all
                # batches of a step, on every process, have equally many
                batches = self.current_gradient_accumulation_steps
                batches *= self.args.world_size if self.args.average_tokens_across_devices else 1
                inputs = {**inputs, "num_samples_in_batch": len(inputs["input_ids"]) * batches}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["head_output"], inputs["label_values"], label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, answers [batch, 2 or 1 + classes] and labels [batch].

        An answer is value and spread, or class index and probabilities; a value that could not be read is NaN, an
        index -1.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = model(**inputs)["loss"]
            model = self.accelerator.unwrap_model(model)
            predictions = model.predict(inputs, self.processing_class.answers, method=self.answer_method)
        rows = [self._as_row(prediction) for prediction in predictions]
        return loss, torch.tensor(rows, device=loss.device), inputs["label_values"]

    def _as_row(self, prediction):
        answers = self.processing_class.answers
        if answers.task == "regression":
            return [math.nan if prediction.value is None else prediction.value, prediction.spread or 0.0]
        index = -1 if prediction.value is None else prediction.value
        return [float(index), *(prediction.probabilities or [0.0] * len(answers.labels))]


def metrics_of(data):
    """The function that turns the trainer's answers and labels into the field's metrics."""
    if data.task == "classification":
        metric = load_metric("erc_classification")
    else:
        metric = load_metric("msa_regression", data.metric)

    def compute_metrics(prediction):
        answers, labels = prediction.predictions, prediction.label_ids
        if data.task == "classification":
            metrics = metric.compute(predictions=answers[:, 0].astype(int), references=labels, labels=data.labels)
        else:
            answered = ~np.isnan(answers[:, 0])
            metrics = {}
            if answered.any():
                metrics = metric.compute(predictions=answers[answered, 0], references=labels[answered])
            # what is not answered counts as the worst there is, or silence would win the selection
            worst = data.label_range[1] - data.label_range[0]
            errors = np.where(answered, np.abs(answers[:, 0] - labels), worst)
            metrics["mae_of_all"] = float(errors.mean())
            metrics["unparsable"] = int((~answered).sum())
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    return compute_metrics
