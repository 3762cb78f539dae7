"""The fused sweep over the vocabulary: one pass over each head for all row rules.

engine.py           the sweep itself, and its autograd function
rows.py             a tile of rows, what rules share on it, and the protocol of a row rule
heads.py            where logits come from, and where their gradients go
sparse.py           a stored or sampled distribution in place of the teacher's logits
chunks.py           how many rows are projected at once
tile.py             the work on one tile; compiled on GPUs
tiles.py            threads that take a tile of rows each
weight_gradient.py  the sum of the chunks' products
"""
