"""Ray Serve: a run's student, any model, a hosted open-weight teacher, behind an OpenAI-compatible API."""
