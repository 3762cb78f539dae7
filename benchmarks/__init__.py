"""Comparisons with other kernels, trainers, clients and engines, side by side in one run. The last line of output is
one JSON object.

kd_loss.py       the loss and its gradients: fused sweep, naive, Liger, TRL, and the matrix products alone
train_step.py    complete optimiser steps against TRL's trainers
generate.py      the client of an endpoint against bare clients
signal_store.py  bytes, errors and rates of stored signals
export.py        exports in the engines that they are for
planted.py       planted losses: is the right one named?
rouge.py         comparison of one instruction with a pool
promptness.py    latencies that a person or a run waits for
busy.py          training steps beside busy processes
studio.py        watchers of a live page
labs.py          the labs of the course
harness.py       fresh processes, interleaved rounds, medians, peak memory, the JSON
claims.py        the table of aims, values and verdicts
"""
