"""What is done with a finished bundle: engines, exports, Triton, robustness; and imports."""
