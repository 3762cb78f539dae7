"""Generation: a teacher writes. Programs, the journal, budgets, resume. The stage is in `stage.py`."""

from potstill.answering.base import Answered, Answering, Failure, ask_all
from potstill.answering.journal import Journal
from potstill.generate.sequence import Sequence

__all__ = ["Answered", "Answering", "Failure", "Journal", "Sequence", "ask_all"]
