"""The fused sweep over the vocabulary: one pass over each head for all row rules.

engine.py           the sweep itself, its autograd function, and the size of a chunk
rows.py             a tile of rows, shared computations on it, and the protocol of a row rule
heads.py            sources of logits, and the destinations of their gradients
sparse.py           a stored or sampled distribution in place of the teacher's logits
tile.py             the work on one tile; compiled on GPUs
workers.py          threads, each with whole tiles
weight_gradient.py  the sum of the chunks' products
"""
