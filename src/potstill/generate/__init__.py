"""Generation: a teacher writes.

stage.py               the stage
program.py             the contract of a program
sequence.py            a program: answers to prompts
self_instruct.py       a program: new instructions; self_instruct_text.py its prompts and parsers, rouge.py its filter
reasoning.py           a program: chains of thought; reasoning_chains.py their properties, and the choice among them
conversations.py       a program: exports of real conversations
verifying.py           verdicts on what a program keeps
decontaminating.py     evaluation sets kept out
estimate.py            requests and maximum cost, before anything is spent
preview.py             the first few requests and answers
card.py                the dataset card
"""

from potstill.answering.base import Answered, Answering, Failure, ask_all
from potstill.answering.journal import Journal
from potstill.generate.sequence import Sequence

__all__ = ["Answered", "Answering", "Failure", "Journal", "Sequence", "ask_all"]
