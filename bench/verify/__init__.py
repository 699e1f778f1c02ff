"""Whether a bundle is whole and unchanged, and computes here what it computed where it was made."""

from .check import verify

__all__ = ["verify"]
