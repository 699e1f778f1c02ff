"""The only training loop, and what belongs to it: schedule, optimiser, resume, adapters."""
