"""Keeps tensorboardX from importing torch, which takes longer than a stage."""

raise ImportError("hidden from the processes of the tests")
