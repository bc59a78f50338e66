"""A student made lighter after pruning: 8-bit weights, 2:4 sparsity, and what they weigh."""
