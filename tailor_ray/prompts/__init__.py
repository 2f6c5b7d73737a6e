"""Prompts: what the student and the teacher are shown, and how the teacher's replies are read."""
