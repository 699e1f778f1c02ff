"""The only training loop, with its schedule, optimiser, resume, adapters."""
