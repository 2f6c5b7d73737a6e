"""The student: its files, its engines, its exam."""
