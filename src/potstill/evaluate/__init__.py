"""Evaluate: what was kept and what was lost, on held-out records. Importing this loads no torch.

stage.py      the stage: loads each model once, in turn, and writes the artifact
held_out.py   the held-out records as rows of tokens, every dropped and cut one counted
measured.py   the models that are measured: where they lie, how they are opened, what they weigh
controls.py   the untrained student, rebuilt
fidelity.py   per-token NLL, KL and agreement, without whole logits
bootstrap.py  intervals by group, paired
summary.py    from per-token values to measures.json
documents.py  the texts and their losses, worst first; per-token values as a table
answers.py    what the models write
speed.py      rates of two models, measured in turn
memory.py     peak memory of one model, in a process of its own
"""
