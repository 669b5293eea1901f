"""What several applications need: fields of settings, files, provenance, quiet libraries, changes to modules."""
