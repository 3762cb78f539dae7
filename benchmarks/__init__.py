"""Side by side with other people's kernels and trainers, in one run. The last line of output is one JSON object.

kd_loss.py      the loss and its gradients: fused sweep, naive, Liger, TRL, and the matrix products alone
train_step.py   whole optimiser steps against TRL's trainers
harness.py      fresh processes, interleaved rounds, medians, peak memory, the JSON
"""
