"""redirectd: established TCP connections outlive a change of address."""

__version__ = "0.1.0"
