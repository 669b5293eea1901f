"""Helpers of the applications: fields of settings, files, provenance, quiet libraries, changes to modules."""
