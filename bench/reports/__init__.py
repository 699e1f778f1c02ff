"""What one call of vbench found out, and how it is shown: terminal, JSON, HTML, JUnit."""
