"""Quantisation-aware training and post-training quantisation on the graph of tensors."""
