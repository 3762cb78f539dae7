"""The fused sweep over the vocabulary: one pass over each head for all row rules.

engine.py           the sweep itself, and its autograd function
rows.py             a tile of rows, shared computations on it, and the protocol of a row rule
heads.py            sources of logits, and the destinations of their gradients
sparse.py           a stored or sampled distribution in place of the teacher's logits
chunks.py           the number of rows projected at once
tile.py             the work on one tile; compiled on GPUs
tiles.py            worker threads, each with a tile of rows
weight_gradient.py  the sum of the chunks' products
"""
