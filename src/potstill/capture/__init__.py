"""The stage `capture`: a teacher's distributions over its records, stored once for any number of trainings.

plan.py         which records are in which batch and which shard
estimators.py   the estimators of the recipe: what is kept of a chunk of rows
features.py     which inner tensors are kept beside it
filling.py      what is missing of a store, from an earlier one and from the teacher
capturing.py    a teacher's batches into a store: bounded in memory, resumed after a kill
served.py       a server's log-probabilities as a store
written.py      the log-probabilities that a server gave with its answers, as a store
store_report.py what the store loses on a sample, beside other estimators; whether storing pays
stage.py        the stage

No torch at import.
"""

KINDS = dict.fromkeys(("threshold", "sampled", "topk", "hidden", "dense", "features"), "estimators")
"""The module of each kind; `registry.build` loads it."""
