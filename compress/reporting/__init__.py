"""What a bundle's history looks like: the page, its pictures, the terminal's tables."""
