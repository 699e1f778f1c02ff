"""Networks: names, heads, checkpoints of other trainers, what changed in them, what they cost."""
