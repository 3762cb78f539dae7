"""The teacher writes: programs, the journal, budgets, resume. The stage is in `stage.py`."""

from potstill.generate.answering import Answered, Answering, Failure, ask_all
from potstill.generate.journal import Journal
from potstill.generate.sequence import Sequence

KINDS = {"conversations": "conversations", "reasoning": "chains", "self_instruct": "self_instruct"}
"""Programs with modules of their own, by kind: they load what only they need."""

__all__ = ["Answered", "Answering", "Failure", "Journal", "Sequence", "ask_all"]
