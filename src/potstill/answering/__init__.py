"""Answers of teachers to requests, each journaled before it is used: a kill costs nothing that was paid for.

base.py      the interface, and what an outcome is
opening.py   opening teachers within one budget
local.py     a model on this machine: batches planned over all requests
endpoint.py  a server: many requests under way
journal.py   SQLite, keyed by the content of the request
budget.py    caps on tokens, requests and money
"""
