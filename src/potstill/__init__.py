"""potstill distils language models, and says what was lost on the way.

Importing this package, its recipes and its command line loads no torch: `import potstill.train` does.
"""

import os

# OpenMP's threads spin while they wait. Beside other work that takes a core from the thread that is waited for, and
# training becomes many times slower (`python -m benchmarks.busy`). libgomp reads this when torch is loaded; processes
# that are started from here inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
