"""Distillation: losses on outputs and features, the teacher's cache, Grad-CAM."""
