"""Comparisons with other kernels, trainers, clients and engines, side by side in one run. The last line of output is
one JSON object.

kd_loss.py       the loss and its gradients: fused sweep, naive, Liger, TRL, and the matrix products alone
train_step.py    complete optimiser steps against TRL's trainers
generate.py      the client of an endpoint against bare clients
signal_store.py  bytes, errors and rates of stored signals
offline_kd.py    students of stored distributions beside one whose teacher was there
export.py        exports in the engines that they are for
speculate.py     speculative decoding, generate and assisted generation
few_rows.py      what reading few tokens costs
draft_training.py  which objective trains the best draft
advice.py        does the advice on drafts hold?
planted.py       planted losses: is the right one named?
coverage.py      how often intervals hold the truth
evaluation.py    what the default measures cost
rouge.py         comparison of one instruction with a pool
promptness.py    latencies that a person or a run waits for
busy.py          training steps beside busy processes
studio.py        watchers of a live page
labs.py          the labs of the course
harness.py       fresh processes, interleaved rounds, medians, peak memory, the JSON
claims.py        the table of aims, values and verdicts
"""
