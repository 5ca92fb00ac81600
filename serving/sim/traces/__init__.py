"""Importers of request traces: our own format and those of public data sets; see FORMATS.md."""

from serving.sim.traces.build import READERS, TraceOptions, read_trace
from serving.sim.traces.trace import RequestTrace

__all__ = ["READERS", "RequestTrace", "TraceOptions", "read_trace"]
