"""potstill distils language models, and says what was lost on the way.

Importing this package, its recipes and its command line loads no torch: `import potstill.train` does.
"""

import os

# OpenMP's threads spin while they wait. If another process takes the core of the thread that they wait for, training
# becomes many times slower (`python -m benchmarks.busy`). libgomp reads this when torch is loaded; child processes
# inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
