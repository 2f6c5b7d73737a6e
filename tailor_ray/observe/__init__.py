"""What people see of a run: progress, logs, metrics, trackers, the report. Nothing here changes a result."""
