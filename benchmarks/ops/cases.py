"""Every case of an operation."""

from benchmarks.harness import Case
from benchmarks.ops import adam, cross_entropy, grad_norm, linear_cross_entropy

CASES: list[Case] = [*adam.CASES, *grad_norm.CASES, *cross_entropy.CASES, *linear_cross_entropy.CASES]
