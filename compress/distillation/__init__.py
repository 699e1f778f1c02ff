"""What a student learns from a teacher: losses, features, caches, where they disagree."""
