"""Reductions as one kernel: read the keys, decide, move the tokens (`fused`)."""
