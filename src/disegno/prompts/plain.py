"""A text that somebody wrote without a thought of prompts, such as a caption: as a prompt that says it, and no more."""

import re

_MEANT = re.compile(r"[\\()\[\]:|_<>]")  # what a prompt means something by, and takes as it is behind a backslash
_WORDS = re.compile(r"\b(AND|BREAK)\b")


def as_prompt(text: str) -> str:
    """Return a prompt whose words are the text: nothing in it is a weight, a schedule, a tag, a wildcard or a comment.

    AND and BREAK become small, and # is left out: of these a prompt has no other form.
    """
    return _MEANT.sub(r"\\\g<0>", _WORDS.sub(lambda found: found[0].lower(), text.replace("#", "")))
