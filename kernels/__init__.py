"""Triton kernels, one file an operation. Installed as ``pyseq.kernels``; only ``pyseq.ops`` calls them.

This file imports nothing: triton is optional, and each kernel module imports it for itself.
"""
