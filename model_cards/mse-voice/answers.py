"""Answers that are always answers: a label as text, text as a label, and what an LLM thinks of every possible answer.

The paper lets the LLM write the label token by token and reads the number back. That can go wrong in ways that look
like data, so this file knows the whole set of answers (`AnswerFormat.candidates`) and offers, besides the paper's
greedy generation, generation that can only write a candidate, and the likelihood of all candidates in one pass.
"""

import logging
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from numbers import Real

import torch

from .backbone_trial import arranged, plainly
from .lower_layers import parameters_of

logger = logging.getLogger(__name__)

METHODS = ("expected", "median", "likeliest", "constrained", "greedy")
# what an LLM's own generation config may ask for and an answer must not have: several answers a prompt, a search over
# beams, a penalty for the second zero of "0.00", tokens that are never or always written, a dict instead of tokens
PLAIN_GENERATION = {
    "num_return_sequences": 1,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "return_dict_in_generate": False,
    **dict.fromkeys(("min_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **dict.fromkeys(
        ("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale")
    ),
    **dict.fromkeys(("penalty_alpha", "stop_strings", "max_time", "prompt_lookup_num_tokens", "watermarking_config")),
}
# what configs call the length of an attention window
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "local_attention",
    "sliding_window_size",
    "attention_window_size",
    "keep_window_size",
)
TOKEN_FIELDS = ("input_ids", "attention_mask", "pseudo_token_mask", "text_mask")


@dataclass
class Prediction:
    """One sample's answer.

    Attributes:
        value (`float`, `int` or `None`): a number within the range (regression) or a class index (classification);
            None where the LLM wrote no answer, and only there.
        text (`str`, *optional*): what the LLM wrote, or the candidate that was chosen.
        spread (`float`, *optional*): standard deviation of the answer under the LLM's own distribution (regression).
        probabilities (`list[float]`, *optional*): one for each candidate, in the order of `AnswerFormat.candidates`.
        problem (`str`, *optional*): why `text` is no answer.
    """

    value: float | int | None
    text: str | None = None
    spread: float | None = None
    probabilities: list | None = None
    problem: str | None = None


class AnswerFormat:
    """
    The answers of a task, their texts and their tokens.

    Regression: the numbers from `label_range[0]` to `label_range[1]` in steps of `label_step`, written with as few
    decimals as keep the rounding below a fortieth of the step: 0.1 needs one, MOSEI's 1/3 two (-0.33), 0.25 two. (The
    paper writes one decimal always.) Classification: the class index, as in the paper, or, with `label_words`, the
    label's name.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): it must have an end-of-sequence token.
        task (`str`): "regression" or "classification".
        label_range (`tuple[float, float]`): lowest and highest number.
        label_step (`float`): distance of neighbouring numbers; the range is a whole number of steps.
        id2label (`dict[int, str]`): names of the classes 0, 1, 2, ...
        label_words (`bool`): the LLM writes a class's name instead of its index.

    Attributes:
        candidates (`list`): the answers' values: floats, or class indices.
        texts (`list[str]`): their texts.
        token_ids (`list[list[int]]`): their tokens, without end token.
        end_token_id (`int`)
        max_new_tokens (`int`): the longest candidate and the end token.

    Raises:
        ValueError: for a field that does not fit, or a tokenizer that cannot tell two candidates apart.
    """

    def __init__(
        self, tokenizer, task="regression", label_range=(-3.0, 3.0), label_step=0.1, id2label=None, label_words=False
    ):
        self.tokenizer = tokenizer
        self.task = task
        if task == "regression":
            self.candidates, self.decimals = _number_grid(label_range, label_step)
            self.texts = [f"{value:.{self.decimals}f}" for value in self.candidates]
        elif task == "classification":
            self.labels = _labels_in_order(id2label)
            self.candidates = list(range(len(self.labels)))
            self.texts = self.labels if label_words else [str(index) for index in self.candidates]
        else:
            raise ValueError(f"task must be 'regression' or 'classification', but is {task!r}")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token; an answer needs one to end with")
        self.end_token_id = tokenizer.eos_token_id
        self.token_ids = [tokenizer(text, add_special_tokens=False).input_ids for text in self.texts]
        for text, ids in zip(self.texts, self.token_ids, strict=True):
            if not ids or tokenizer.decode(ids).strip() != text:
                raise ValueError(f"the tokenizer cannot write the answer {text!r}: it reads {tokenizer.decode(ids)!r}")
        self.max_new_tokens = max(map(len, self.token_ids)) + 1
        self._next_tokens = _next_tokens([(*ids, self.end_token_id) for ids in self.token_ids])
        self._trie = _Trie(self.token_ids, self.end_token_id)

    @classmethod
    def from_config(cls, config, tokenizer, label_words=False):
        """The answers of an `MseAdapterConfig` or `MseConfig` (task, label_range, label_step, id2label)."""
        return cls(tokenizer, config.task, config.label_range, config.label_step, config.id2label, label_words)

    def __deepcopy__(self, memo):
        # nothing in it changes, and a processor, which holds one, is copied whenever it is printed or saved
        return self

    def text_of(self, label):
        """The text of a label: a number within the range (the nearest candidate's), a class index or a class name.

        Raises:
            ValueError: a number outside the range or not finite, an unknown class.
        """
        return self.texts[self.index_of(label)]

    def index_of(self, label):
        """The position in `candidates` of a label, as `text_of` takes it."""
        label = label.item() if hasattr(label, "item") else label
        low, high = self.candidates[0], self.candidates[-1]
        expected = f"a number from {low} to {high}"
        if self.task == "classification":
            if label in self.labels:
                return self.labels.index(label)
            expected = f"one of {self.labels} or its index"
        # float32 labels may stand a rounding error outside
        if not isinstance(label, Real) or not low - 1e-6 <= label <= high + 1e-6:
            raise ValueError(f"the label must be {expected}, but is {label!r}")
        place = (label - low) / (high - low) * (len(self.candidates) - 1)
        if self.task == "classification" and place != round(place):
            raise ValueError(f"the label must be {expected}, but is {label!r}")
        return round(place)

    def parse(self, text):
        """Read what the LLM wrote, strictly.

        Returns:
            Prediction: with `value` None and `problem` set unless the text, but for white space around it, is one
            number within the range (with or without sign; on the grid or not) or one class. Nothing is guessed.
        """
        text = text.strip()
        if text in self.texts:
            # a candidate is worth what it stands for (1/3), not what it reads (0.33)
            return Prediction(self.candidates[self.texts.index(text)], text)
        if self.task == "classification":
            return Prediction(None, text, problem=f"{text!r} is none of {', '.join(self.texts)}")
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", text):
            return Prediction(None, text, problem=f"{text!r} is not a number")
        low, high = self.candidates[0], self.candidates[-1]
        value = float(text) + 0.0  # "-0.0" reads as 0.0
        if not low <= value <= high:
            return Prediction(None, text, problem=f"{text!r} is outside {low} to {high}")
        return Prediction(value, text)

    def parse_tokens(self, new_token_ids):
        """`parse` for generated tokens [batch, new tokens] (without the prompt): each row up to its end token."""
        end = self.end_token_id
        rows = [row[: row.index(end)] if end in row else row for row in torch.as_tensor(new_token_ids).tolist()]
        return [self.parse(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def prefix_allowed_tokens_fn(self, batch_index, generated_ids):
        """For `generate(inputs_embeds=...)`: the tokens that keep the answer a candidate, then the end token.

        Args:
            generated_ids (`torch.Tensor` [tokens]): what this row has written so far, without the prompt.
        """
        return self._next_tokens.get(tuple(generated_ids.tolist()), [self.end_token_id])

    @torch.no_grad()
    def score_candidates(self, model, batch):
        """
        Log-likelihood of every candidate after each prompt, all in one forward pass of the LLM.

        The candidates share beginnings, so they form a trie. Its inner nodes stand behind the prompt as tokens that
        see the prompt, their ancestors and themselves (a 4-D attention mask; position ids count the depth); the
        leaves' likelihood follows from their parents' logits, so leaves are not fed. 61 numbers cost some 20 tokens.
        An LLM that takes no such mask (found out once by a small trial, see `takes_tree_mask`) gets the candidates
        as rows of a batch instead.

        Where one candidate's tokens begin another's (classes 1 and 10), the end token counts as part of each.

        Args:
            model: `MseForConditionalGeneration`, or a PEFT model with an MSE-Adapter.
            batch (`dict`): as `MseProcessor` makes it, padded on either side; label tokens in it are left out.

        Returns:
            `torch.Tensor` float32 [batch, candidates].
        """
        prompts = model.prepare_inputs(**left_padded_prompts(batch))
        llm = model.language_model
        length = prompts["inputs_embeds"].shape[1] + self._trie.max_depth
        if takes_tree_mask(llm, length):
            return _score_tree(llm, prompts, self._trie)
        return _score_rows(llm, prompts, self._trie)

    @torch.no_grad()
    def predict(self, model, batch, method=None):
        """
        Answer a batch.

        Args:
            model, batch: as in `score_candidates`.
            method (`str`, *optional*):
                - "expected" (regression, its default): mean over all candidates, weighted by their likelihood;
                - "median" (regression): the lowest candidate with half of the likelihood at or below it;
                - "likeliest" (default for classification): the candidate of highest likelihood;
                - "constrained": greedy generation that can only write a candidate;
                - "greedy": the paper's free generation, strictly parsed; what is no answer is logged, has the value
                  None and names its `problem`.

                The defaults are what measures best on validation in benchmarks/mse_answers.py: the mean has the
                lowest error, or one within the seeds' deviation of the median's; for classes "likeliest",
                "constrained" and "greedy" hardly differ, and the one pass of "likeliest" is the fastest.

        Returns:
            `list[Prediction]`, one a row; `spread` (regression) and `probabilities` come with the first three methods.
        """
        method = method or ("expected" if self.task == "regression" else "likeliest")
        if method not in methods_of(self.task):
            raise ValueError(f"method must be one of {methods_of(self.task)} for {self.task}, but is {method!r}")
        if method not in ("constrained", "greedy"):
            return self.predictions_of(self.score_candidates(model, batch), method)
        grammar = {"prefix_allowed_tokens_fn": self.prefix_allowed_tokens_fn} if method == "constrained" else {}
        new_token_ids = model.generate(
            **left_padded_prompts(batch),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            **PLAIN_GENERATION,
            eos_token_id=self.end_token_id,
            pad_token_id=self.end_token_id,
            **grammar,
        )
        predictions = self.parse_tokens(new_token_ids)
        problems = [prediction.problem for prediction in predictions if prediction.value is None]
        if problems:
            logger.warning(f"{len(problems)} of {len(predictions)} answers are no answers: {'; '.join(problems)}")
        return predictions

    def predictions_of(self, log_likelihoods, method):
        """Turn log-likelihoods [batch, candidates] into `Prediction`s by "expected", "median" or "likeliest"."""
        probabilities = log_likelihoods.double().softmax(dim=-1)
        require_finite(probabilities, "candidates' likelihoods", log_likelihoods.dtype)
        best = probabilities.argmax(dim=-1).tolist()
        rows = probabilities.tolist()
        if self.task == "classification":
            return [
                Prediction(self.candidates[i], self.texts[i], probabilities=row)
                for i, row in zip(best, rows, strict=True)
            ]
        values = torch.tensor(self.candidates, dtype=torch.float64, device=probabilities.device)
        means = probabilities @ values
        spreads = (probabilities * (values - means[:, None]) ** 2).sum(dim=-1).sqrt().tolist()
        if method == "median":
            best = (probabilities.cumsum(dim=-1) < 0.5).sum(dim=-1).tolist()
        chosen = means.tolist() if method == "expected" else [self.candidates[i] for i in best]
        return [
            Prediction(value, self.text_of(value), spread, row)
            for value, spread, row in zip(chosen, spreads, rows, strict=True)
        ]


def methods_of(task):
    """The methods of [`AnswerFormat.predict`] for a task: classes have no order, so neither mean nor median."""
    return tuple(name for name in METHODS if task == "regression" or name not in ("expected", "median"))


def require_finite(values, name, dtype):
    """Raise ValueError where the LLM, at its dtype, gave NaN or infinite `values`."""
    if not values.isfinite().all():
        raise ValueError(f"the LLM, in {dtype}, gives {name} that are NaN or infinite; try bfloat16 or float32")


def left_padded_prompts(batch):
    """The prompts of a batch, each ending in the last column; labels and their tokens are gone.

    Whether the batch was padded left or right, and whether it holds labels, the result is the same.
    """
    is_prompt = batch["attention_mask"].bool()
    if batch.get("labels") is not None:
        is_prompt = is_prompt & (batch["labels"] == -100)
    length = int(is_prompt.sum(dim=1).max())
    # a stable sort of False before True moves each row's prompt to the right end, in order
    order = is_prompt.int().argsort(dim=1, stable=True)[:, -length:]
    prompts = {name: value for name, value in batch.items() if name not in ("labels", "label_values")}
    prompts |= {name: batch[name].gather(1, order) for name in TOKEN_FIELDS if batch.get(name) is not None}
    prompts["attention_mask"] = is_prompt.gather(1, order).to(batch["attention_mask"].dtype)
    return prompts


class _Trie:
    """The candidates' shared beginnings. Node 0 is the end of the prompt; nodes 1.. are fed to the LLM.

    Attributes:
        tokens [nodes], depths [nodes] (first token: 1), sees bool [nodes, nodes] (ancestors and itself), for the fed
        nodes; edge_nodes, edge_tokens, edge_mask [candidates, longest]: candidate c has the likelihood of
        edge_tokens[c, i] after edge_nodes[c, i] for all i where edge_mask holds (numbered with node 0).
        max_depth (int): of the fed nodes.
    """

    def __init__(self, token_ids, end_token_id):
        prefixes = {tuple(ids[:stop]) for ids in token_ids for stop in range(len(ids))}
        if duplicates := [ids for ids, count in Counter(map(tuple, token_ids)).items() if count > 1]:
            raise ValueError(f"two candidates have the same tokens {duplicates[0]}")
        if any(tuple(ids) in prefixes for ids in token_ids):
            token_ids = [[*ids, end_token_id] for ids in token_ids]
            prefixes = {tuple(ids[:stop]) for ids in token_ids for stop in range(len(ids))}
        # shorter prefixes first, so that a node stands behind its ancestors
        prefixes = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
        node_of = {prefix: node for node, prefix in enumerate(prefixes)}
        self.tokens = torch.tensor([prefix[-1] for prefix in prefixes[1:]], dtype=torch.long)
        self.depths = torch.tensor([len(prefix) for prefix in prefixes[1:]], dtype=torch.long)
        self.max_depth = int(self.depths.max()) if len(prefixes) > 1 else 0
        self.sees = torch.zeros(len(prefixes) - 1, len(prefixes) - 1, dtype=torch.bool)
        for prefix in prefixes[1:]:
            for stop in range(1, len(prefix) + 1):
                self.sees[node_of[prefix] - 1, node_of[prefix[:stop]] - 1] = True
        longest = max(map(len, token_ids))
        self.edge_nodes, self.edge_tokens = torch.zeros(2, len(token_ids), longest, dtype=torch.long)
        self.edge_mask = torch.zeros(len(token_ids), longest, dtype=torch.bool)
        for row, ids in enumerate(token_ids):
            self.edge_nodes[row, : len(ids)] = torch.tensor([node_of[tuple(ids[:i])] for i in range(len(ids))])
            self.edge_tokens[row, : len(ids)] = torch.tensor(ids)
            self.edge_mask[row, : len(ids)] = True


def _score_tree(llm, prompts, trie):
    embeds, mask, position_ids = prompts["inputs_embeds"], prompts["attention_mask"].bool(), prompts["position_ids"]
    batch_size, prompt_length = mask.shape
    device = embeds.device
    nodes = llm.get_input_embeddings()(trie.tokens.to(device)).to(embeds.dtype)
    length = prompt_length + len(nodes)

    sees = torch.zeros(batch_size, 1, length, length, dtype=torch.bool, device=device)
    sees[:, 0, :, :prompt_length] = mask[:, None]
    sees[:, 0, :prompt_length, :prompt_length].logical_and_(
        torch.ones(prompt_length, prompt_length, dtype=torch.bool, device=device).tril()
    )
    sees[:, 0, prompt_length:, prompt_length:] = trie.sees.to(device)
    # padding sees itself, or its softmax would be over nothing
    sees.diagonal(dim1=-2, dim2=-1).fill_(True)
    tree_mask = torch.zeros(sees.shape, dtype=embeds.dtype, device=device)
    tree_mask.masked_fill_(~sees, torch.finfo(embeds.dtype).min)

    logits = _logits(
        llm,
        inputs_embeds=torch.cat([embeds, nodes.expand(batch_size, -1, -1)], dim=1),
        attention_mask=tree_mask,
        position_ids=torch.cat([position_ids, position_ids[:, -1:] + trie.depths.to(device)], dim=1),
        positions=torch.arange(prompt_length - 1, length, device=device),
    )
    edge_nodes, edge_tokens = trie.edge_nodes.to(logits.device), trie.edge_tokens.to(logits.device)
    edges = logits[:, edge_nodes, edge_tokens].float() - _normaliser(logits)[:, edge_nodes]
    return edges.masked_fill(~trie.edge_mask.to(logits.device), 0).sum(dim=-1)


def _score_rows(llm, prompts, trie, rows_per_pass=64):
    """The same, every candidate in a row of its own: any causal LLM can do that."""
    embeds, mask, position_ids = prompts["inputs_embeds"], prompts["attention_mask"], prompts["position_ids"]
    batch_size, prompt_length = mask.shape
    scores = []
    for chunk in torch.arange(len(trie.edge_tokens)).split(max(1, rows_per_pass // batch_size)):
        tokens, token_mask = trie.edge_tokens[chunk].to(embeds.device), trie.edge_mask[chunk].to(embeds.device)
        # rows of one prompt stand together; a candidate's last token is scored, not fed
        fed, fed_mask = tokens[:, :-1].repeat(batch_size, 1), token_mask[:, 1:].repeat(batch_size, 1)
        steps = torch.arange(1, fed.shape[1] + 1, device=embeds.device)
        repeated = [value.repeat_interleave(len(chunk), dim=0) for value in (embeds, mask, position_ids)]
        logits = _logits(
            llm,
            inputs_embeds=torch.cat([repeated[0], llm.get_input_embeddings()(fed).to(embeds.dtype)], dim=1),
            attention_mask=torch.cat([repeated[1], fed_mask.to(mask.dtype)], dim=1),
            position_ids=torch.cat([repeated[2], repeated[2][:, -1:] + steps], dim=1),
            positions=torch.arange(prompt_length - 1, prompt_length + fed.shape[1], device=embeds.device),
        )
        targets = tokens.to(logits.device).repeat(batch_size, 1)
        edges = logits.gather(-1, targets[..., None])[..., 0].float() - _normaliser(logits)
        edges = edges.view(batch_size, *tokens.shape).masked_fill(~token_mask.to(logits.device), 0)
        scores.append(edges.sum(dim=-1))
    return torch.cat(scores, dim=1)


def _normaliser(logits):
    """log sum exp over the vocabulary, in float32; one position after the other, for the vocabulary is large."""
    return torch.stack([position.float().logsumexp(dim=-1) for position in logits.unbind(dim=1)], dim=1)


def _logits(llm, inputs_embeds, attention_mask, position_ids, positions):
    """Logits [batch, positions, vocabulary], computed nowhere else where the LLM lets us choose."""
    parameters = parameters_of(llm)
    inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
    if "position_ids" in parameters:
        inputs["position_ids"] = position_ids
    inputs, positions, as_wanted = arranged(llm, inputs, positions)
    if "logits_to_keep" in parameters:
        return as_wanted(llm(**inputs, logits_to_keep=positions, **plainly(llm)).logits)
    return as_wanted(llm(**inputs, **plainly(llm)).logits[:, positions])


@torch.no_grad()
def takes_tree_mask(llm, length):
    """
    Whether this LLM can read a tree of `length` tokens by a 4-D attention mask.

    It cannot where a sliding or chunked attention window is shorter than that (the mask would replace the window),
    with flash or flex attention, in recurrent and hybrid LLMs, and where remote code rejects or ignores the mask.
    Rather than keep a list of those, a trial of a few tokens compares two branches of a tree with the same two
    sequences alone; its outcome is remembered on the LLM for each attention implementation.
    """
    config = llm.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    if any(window is not None and length > window for window in windows):
        return False
    implementation = str(getattr(config, "_attn_implementation", None))
    if "flash" in implementation or "flex" in implementation:
        return False
    outcomes = llm.__dict__.setdefault("_takes_tree_mask", {})
    if implementation not in outcomes:
        outcomes[implementation] = _tree_equals_rows(llm)
        if not outcomes[implementation]:
            logger.info(f"{type(llm).__name__} takes no 4-D attention mask: candidates are scored as rows of a batch")
    return outcomes[implementation]


def _tree_equals_rows(llm):
    """Two padded prompts of four tokens, then two branches of three: as a tree, as rows, and as one sequence."""
    embedding = llm.get_input_embeddings()
    weight = embedding.weight
    # one that is kept on disk takes the tokens along to where it computes
    ids = torch.arange(8, device="cpu" if weight.is_meta else weight.device).view(2, 4) % embedding.num_embeddings
    embeds = embedding(ids)
    device = embeds.device
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]], device=device)
    prompts = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    trie = _Trie([[3, 4, 5, 6], [4, 6, 3, 5]], end_token_id=0)
    blind = _Trie([[3, 4, 5, 6], [4, 6, 3, 5]], end_token_id=0)
    blind.sees = torch.ones_like(blind.sees).tril()
    try:
        tree, one_sequence = _score_tree(llm, prompts, trie), _score_tree(llm, prompts, blind)
    except (IndexError, RuntimeError, TypeError, ValueError):
        # each library refuses a mask of unexpected shape in its own way
        return False
    rows = _score_rows(llm, prompts, trie)
    # rounding may differ by dtype, so the error is measured against what a wrong mask would do
    error, effect = (tree - rows).abs().max(), (one_sequence - rows).abs().max()
    return bool(error <= 1e-5 or error < 0.1 * effect)


def _number_grid(label_range, label_step):
    """The numbers from low to high, and how many decimals they need."""
    low, high = label_range
    if not low < high:
        raise ValueError(f"label_range must go from a lower to a higher number, but is {label_range}")
    if not 0 < label_step <= high - low:
        raise ValueError(f"label_step must be positive and fit into the range {label_range}, but is {label_step}")
    steps = round((high - low) / label_step)
    if abs(steps * label_step - (high - low)) > 1e-3 * label_step:
        raise ValueError(f"label_range {label_range} must be a whole number of steps, but label_step is {label_step}")
    numbers = [low + (high - low) * index / steps for index in range(steps + 1)]
    for decimals in range(10):
        rounded = [round(number, decimals) + 0.0 for number in numbers]
        if all(abs(a - b) <= label_step / 40 for a, b in zip(numbers, rounded, strict=True)):
            break
    # 0.3 is 0.3 and not 0.2999999999999998; a third stays a third
    return [b if abs(a - b) < 1e-9 else a for a, b in zip(numbers, rounded, strict=True)], decimals


def _labels_in_order(id2label):
    if not id2label or len(id2label) < 2 or sorted(map(int, id2label)) != list(range(len(id2label))):
        raise ValueError(f"classification needs id2label with the indices 0, 1, ..., but it is {id2label}")
    labels = [str(id2label[key]) for key in sorted(id2label, key=int)]
    if len(set(labels)) < len(labels):
        raise ValueError(f"id2label must name every class differently, but it is {id2label}")
    return labels


def _next_tokens(sequences):
    allowed = defaultdict(set)
    for sequence in sequences:
        for stop, token in enumerate(sequence):
            allowed[sequence[:stop]].add(token)
    return {prefix: sorted(tokens) for prefix, tokens in allowed.items()}
