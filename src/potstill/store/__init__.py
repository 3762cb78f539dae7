"""The signal store: a teacher's distributions, kept in a few bytes per token.

estimators.py    from log-probabilities to the entries that are kept, with bias and variance stated
codec.py         the entries of one sequence as bytes, and back
packing.py       integers and floats as bytes
files.py         shards and their index: appended to, resumed, checked, joined by record
earlier.py       what an earlier store has of the sequences of another
exchange.py      a store at a URL, and as Parquet
output_layer.py  what of the teacher is loaded where its hidden states are stored
"""
