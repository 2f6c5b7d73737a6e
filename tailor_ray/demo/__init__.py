"""What a machine without weights, data or key needs: a student, a task and a teacher of its own.

It hands over an ordinary model folder, an ordinary task and an ordinary server."""
