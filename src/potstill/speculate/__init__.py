"""Speculative decoding as a stage: measure a draft, advise, have it trained, measure again, export. No torch here.

stage.py        the stages
prompts.py      the prompts, and the tokens of the data
fitting.py      whether a draft has the target's tokens
opening.py      target and draft, opened; the frequent tokens
traces.py       texts of the target, and what a draft would have proposed at each position
costs.py        the time of each part of a round, and of whole texts with and without a draft
forecast.py     from both to seconds: expected rounds, speed-up with an interval, thresholds, break-even
batches.py      the same for batches, whose rounds are played out
advice.py       use it or do not, why, and what would have to change
export.py       the draft for other engines, checked through its files
collecting.py   what a target writes while it is used, as training data for its draft
speculating.py  the work of the stages
"""
