"""Attacks and corruptions, and how much accuracy is left under them."""
