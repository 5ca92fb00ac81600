"""The same scheduler in virtual time: clocks, cost models, workloads. No device."""
