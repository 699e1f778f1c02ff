"""From what a user names to a finished bundle: resolve, run, prove, measure, write."""
