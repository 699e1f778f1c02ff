"""One stage a file: a frozen dataclass `Config` and `apply(model, config, context)`."""
