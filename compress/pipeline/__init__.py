"""The way of a stage: resolve names, run, export and prove, measure, write the bundle."""
