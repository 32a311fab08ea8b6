"""The tasks of lowland. Each file defines one task, or several with a common data format; see ``lab.names``."""
