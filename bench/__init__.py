"""Measure and score a model in the runtime that ships it. Needs no torch."""
