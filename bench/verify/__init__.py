"""Is a bundle whole, as it was written, and does it compute here what it computed there?"""

from .check import verify

__all__ = ["verify"]
