"""The result of one call of vbench, and its forms: terminal, JSON, HTML, JUnit."""
