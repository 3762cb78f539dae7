"""`potstill studio` and `potstill learn`: one local web application, a window on runs and a course.

It stands beside the command line: it reads the files of runs, and starts runs as processes of their own, so that none
of them needs it. No torch in this process: models are opened in a worker (`worker.py`).
"""
