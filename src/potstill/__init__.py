"""potstill distils language models, and says what was lost on the way.

Importing this package, its recipes and its command line loads no torch: `import potstill.train` does.
"""

__version__ = "0.1.0"
