"""The loop and its clock: warm-up, samples, noise, one model against another."""
