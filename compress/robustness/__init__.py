"""Attacks and corruptions, and the accuracy under them."""
