"""The functions of the library: one step each for any `nn.Module`, between a user's own loops."""
