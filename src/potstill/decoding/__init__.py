"""Text from a model on this machine: batched generation, and exact speculative decoding with its drafts.

generator.py     batches by the loop of `transformers`, for teachers and evaluations
speculative.py   the speculative loop; arguments.py what of `model.generate` it takes and refuses
cached_model.py  a model that reads blocks behind what it has read, and its cache
few_rows.py      linear layers of few rows, in the fastest way of this machine
rows.py          the texts of a batch while they grow
drafts.py        sources of drafted tokens; medusa.py heads as a draft
tree.py          trees of drafted tokens
acceptance.py    which drafted tokens stand
sampler.py       from logits to the distribution that is sampled
"""
