"""The stage `capture`: a teacher's distributions over its records, stored once for any number of trainings.

plan.py         which records are in which batch and which shard
estimators.py   from the settings of an estimator to what is kept of a chunk of rows
features.py     which inner tensors are kept beside it
capturing.py    a teacher's batches into a store: bounded in memory, resumed after a kill
served.py       a server's log-probabilities as a store
fidelity.py     what the store lost, on a sample, and what others would have lost; online or offline
stage.py        the stage

No torch at import.
"""

KINDS = dict.fromkeys(("threshold", "sampled", "topk", "hidden", "dense", "features"), "estimators")
"""The module of each kind; `registry.build` loads it."""
