"""One call of vbench, from its options to a result."""
