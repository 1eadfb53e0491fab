"""Transcripts in sentence case: what changes, what must not, and that inference does as training did."""

import pytest

from hf_mse_adapter import MseProcessor
from hf_mse_adapter.transcripts import in_sentence_case
from tests.hf_mse_adapter.tiny_backbones import build_tokenizer

CASES = {
    "I DIDNT LIKE IT": "I didn't like it.",
    "im sure youve seen it, havent you?": "I'm sure you've seen it, haven't you?",
    "WHO'S THERE?!": "Who's there?!",
    "UM  (SMIRK) I LOVE IT": "Um (smirk) I love it.",
    "WELL WERE ILL": "Well were ill.",
    # of both cases: left alone but for the end mark
    "Mr. McDonald isnt HERE": "Mr. McDonald isnt HERE.",
    'He said "no."': 'He said "no."',
    "Hi there,": "Hi there.",
    "我不想": "我不想。",
    "1234": "1234.",
    "...": "...",
    "  ": "",
}


@pytest.mark.parametrize("text", CASES)
def test_sentence_case(text):
    assert in_sentence_case(text) == CASES[text]
    assert in_sentence_case(CASES[text]) == CASES[text]


def test_the_processor_does_so_where_it_is_told_to_and_remembers(tmp_path):
    fields = {"tokenizer": build_tokenizer(), "audio_dim": 5, "vision_dim": 4}
    processor = MseProcessor(**fields, sentence_case=True)
    processor.save_pretrained(tmp_path)
    for one in (processor, MseProcessor.from_pretrained(tmp_path)):
        upper = one("I DIDNT LIKE IT", context=[("Ann", "IM FINE")])
        written = MseProcessor(**fields)("I didn't like it.", context=[("Ann", "I'm fine.")])
        assert upper["input_ids"].tolist() == written["input_ids"].tolist()
    assert MseProcessor(**fields)("NO")["input_ids"].tolist() != processor("NO")["input_ids"].tolist()
    with pytest.raises(ValueError, match="sentence_case must be True or False, but is 'yes'"):
        MseProcessor(**fields, sentence_case="yes")
