"""Weights: named, fetched, verified and read without torch.

Nothing is imported here: `sfrjax --help` needs the names of weights, and no reader of them.
"""
