"""Export: student formats that other tools open without potstill. Importing this loads no torch.

stage.py        the stage: one artifact per entry of the recipe's `export`
base.py         what an exporter is given
huggingface.py  a folder that the plain `from_pretrained` of its task opens; a module of one's own with its file
end_tokens.py   the tokens at which the student stops by itself
vocabulary.py   rows of the output layer that stand for no token
"""

from potstill.export.huggingface import HuggingFace

__all__ = ["HuggingFace"]
