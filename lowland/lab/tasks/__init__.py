"""The tasks that lowland comes with: each file here is one, or several that share their data; see ``lab.names``."""
