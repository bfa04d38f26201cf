"""Renders figures that other modules computed."""
