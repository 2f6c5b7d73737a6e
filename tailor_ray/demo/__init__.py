"""What a machine without weights, data or key needs: the mock teacher, which is a real server."""
