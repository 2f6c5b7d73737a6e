"""Training: lessons and mistakes in, a better student out. Importing this package imports no torch."""
