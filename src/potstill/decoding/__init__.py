"""Text from a model on this machine: batched generation, and exact speculative decoding with its drafts."""
