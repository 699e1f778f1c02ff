"""Networks: by name, their heads, checkpoints of other trainers, changes, costs."""
