"""Importers of request traces."""
