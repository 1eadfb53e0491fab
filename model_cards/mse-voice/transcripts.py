"""Transcripts as an LLM has read them: in sentence case.

Speech corpora (CMU-MOSI, CMU-MOSEI) spell what was said in upper or in lower case, without punctuation or apostrophes.
An LLM has seen little of that: to it, "I DIDNT LIKE IT" is a row of rare pieces.
"""

import re

# What is a word without its apostrophe only by this mistake. Left out: "ill", "id", "well", "were", "wed", "shell",
# "hell", "its" and "lets", which are words.
_CONTRACTIONS = (
    "i'm i've you're you've you'll you'd he's she's they're they've they'll they'd we've that's that'll there's "
    "here's what's where's who's isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't "
    "couldn't won't wouldn't shouldn't mustn't needn't ain't could've should've would've might've must've y'all"
)
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_END_MARKS = re.compile(r"[.!?…。！？]['\"”’»)\]]*$")


def in_sentence_case(text):
    """
    A transcript as one would write it: "I DIDNT LIKE IT" becomes "I didn't like it."

    A text with both upper and lower case letters keeps its words as they are. One that is all upper or all lower case
    gets lower case, the apostrophes of English contractions, a capital I and a capital first letter (names stay
    small: nothing here knows them). Any text with a letter gets an end mark where it has none; text without case, as
    Chinese, gets the end mark of its script. Applied twice, it changes nothing more.

    Args:
        text (`str`)

    Returns:
        `str`: of single spaces between the words; empty if there is no word.
    """
    text = " ".join(text.split())
    if is_of_one_case(text):
        text = _WORD.sub(_spelt, text.lower())
        first = next(iter(re.finditer(r"[^\W\d_]", text)), None)
        if first:
            text = text[: first.start()] + text[first.start() :][0].upper() + text[first.end() :]
    if re.search(r"\w", text) and not _END_MARKS.search(text):
        text = re.sub(r"[,;:\-–—\s]+$", "", text)
        text += "。" if re.search(r"[\u3040-\u30ff\u4e00-\u9fff]$", text) else "."
    return text


def is_of_one_case(text):
    """Whether a text has letters with case, all of them upper or all of them lower case (`bool`)."""
    return text != text.swapcase() and text in (text.upper(), text.lower())


def _spelt(match):
    word = match.group()
    word = _APOSTROPHES.get(word, word)
    return "I" + word[1:] if word == "i" or word.startswith("i'") else word
