"""Work that is done by several machines."""
