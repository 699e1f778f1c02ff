"""One file for each runtime."""
