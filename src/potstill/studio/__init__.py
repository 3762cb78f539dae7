"""`potstill studio` and `potstill learn`: one local web application, a window on runs and a course.

It stands beside the command line: it reads the files of runs, and starts runs as processes of their own, so that none
of them needs it. No torch in this process: models are opened in a worker.

server.py     the application, on loopback
guard.py      what every request passes first
pages/        runs, playground, lessons, tutor
render.py     templates and filters
charts.py     small charts
workspace.py  the folder of runs
control.py    starting, stopping and editing runs
live.py       following runs by their files
records.py    records and rejects, a page at a time
session.py    the conversation with the worker
worker.py     the process that holds models
course/       lessons and labs
tutor.py      the tutor; retrieval.py finds its passages
"""
