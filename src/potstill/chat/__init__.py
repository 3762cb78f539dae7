"""`potstill chat RUN`: talk to a student in the terminal, beside its teacher if asked. Loads torch only when it runs.

speaker.py   a model in a conversation: its turns, and its answer piece by piece
terminal.py  what the person types and sees: one text, two columns, or one after the other
"""
