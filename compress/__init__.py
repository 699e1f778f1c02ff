"""Models, data, training and the methods: distil, prune, quantise."""
