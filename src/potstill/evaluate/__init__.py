"""Evaluate: what was kept and what was lost, on held-out records. Importing this loads no torch.

stage.py       the stage: its key, and what it writes
evaluation.py  loads each model once, in turn, and measures it
cast.py        who is measured: teacher, student, controls
held_out.py    the held-out records as rows of tokens or images, every dropped and cut one counted
measured.py    where a model lies, how it is opened, what it weighs
members.py     an ensemble's members as one model
controls.py    the untrained student, rebuilt
scores.py      what is known of one model per target
fidelity.py    NLL, KL, agreement and classes per target, without whole logits over a vocabulary
neighbours.py  nearest neighbours of embeddings
bootstrap.py   intervals by group, paired
summary.py     from values per target to measures.json
documents.py   the records and their losses, worst first; all values as a table
pictures.py    images as PNG
answers.py     what the models write
passes.py      one pass of a model, timed
speed.py       rates of two models, measured in turn
memory.py      peak memory of one model, in a process of its own
"""
