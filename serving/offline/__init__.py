"""The batch command: workloads, policy comparison, request files, console and report."""
