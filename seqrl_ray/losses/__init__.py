"""Losses: pure functions of tensors, one value per element; `reduce` alone sums and averages."""
