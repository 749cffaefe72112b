"""Estimates what a config takes on machines that need not be present."""
