"""What is made of a finished bundle: engines, exports, Triton repositories, imports."""
