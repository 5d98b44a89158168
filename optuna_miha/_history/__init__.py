"""The history of a run: its segments, their curves, and the tree that they form.

The history is read from the attributes of trials. This room does not decide what to train next,
does not import torch, and does not write to a storage. It imports ``exceptions`` only.
"""
