"""Evaluate: what was kept and what was lost, on held-out records. Importing this loads no torch.

stage.py            the stage: its key, and what it writes
evaluation.py       loads each model once, in turn, and measures it
compared_models.py  the models that are compared: teacher, student, controls, of all seeds
held_out.py         the held-out records as rows of tokens or images; dropped and cut ones are counted
scores.py           the values of one model per target
fidelity.py         NLL, KL, agreement and classes per target, without complete logits over a vocabulary
neighbours.py       nearest neighbours of embeddings
measures/           the measures; each gives metrics and findings
bootstrap.py        intervals by group, paired, and over seeds
summary.py          every metric with its interval and paired differences, to measures.json
documents.py        the records and their losses, worst first; a table of all values; images as PNG
accuracies.py       tasks of questions: accuracies, exact tests of pairs, what is kept above chance
questions.py        questions of measures, as their data tell
texts.py            words, columns and texts of targets
continuations.py    log-probabilities of given continuations
temperatures.py     the temperature with the smallest NLL, and the NLL there
smoothing.py        a smooth curve through values per target, with a band
stored.py           the teacher's side, read from a store
teacher_memory.py   what a teacher gave on a held-out set, kept
answers.py          answers of a model
speed.py            rates and peak memory of models
"""
