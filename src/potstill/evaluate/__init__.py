"""Evaluate: what was kept and what was lost, on held-out records. Importing this loads no torch.

stage.py            the stage: its key, and what it writes
evaluation.py       loads each model once, in turn, and measures it
compared_models.py  the models that are compared: teacher, student, controls, by all seeds
held_out.py         the held-out records as rows of tokens or images, every dropped and cut one counted
scores.py           the values of one model per target
fidelity.py         NLL, KL, agreement and classes per target, without whole logits over a vocabulary
neighbours.py       nearest neighbours of embeddings
measures/           the measures: fidelity, calibration, tails; each gives metrics and findings
bootstrap.py        intervals by group, paired, and over seeds
summary.py          every metric with its interval and paired differences, to measures.json
documents.py        the records and their losses, worst first; all values as a table
pictures.py         images as PNG
problems.py         the held-out problems
solving.py          which of them models solve
answers.py          greedy answers of a model
passes.py           one pass of a model, timed
speed.py            rates of two models, measured in turn
memory.py           peak memory of one model, in a process of its own
"""
