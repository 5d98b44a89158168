"""What a run has done: its segments, their curves, and the tree that they form.

Everything here is read from the attributes of trials. Nothing here decides what to train next,
imports torch, or touches a storage. This room stands on ``exceptions`` alone.
"""
